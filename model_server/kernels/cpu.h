#pragma once

namespace medusa {

// What the processor, and the operating system on it, can. Each holds what the ones before it do.
enum class Isa {
    none,
    avx2,    // with FMA and F16C
    avx512,  // F, BW, DQ, VL and VNNI
    amx,     // tiles of int8 and of BF16, with the operating system's permission
};

struct Cpu {
    Isa isa;
    bool avx_vnni;  // VNNI for AVX2
    bool avx512_bf16;
};

// Found out once. Kernels are chosen by it at every call: tests let it forget what it can.
const Cpu & cpu();

// Names the best instruction set, for people.
const char * cpu_name();

// Use "avx2", "avx512" or "amx" at most, or all there is again. For tests: an emulator lends "amx".
void limit_cpu(const char * isa);

}  // namespace medusa
