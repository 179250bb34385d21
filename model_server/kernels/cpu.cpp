#include "cpu.h"

#include <cpuid.h>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace medusa {
namespace {

enum Register { eax, ebx, ecx, edx };

struct Leaf {
    unsigned registers[4] = {};

    Leaf(unsigned leaf, unsigned subleaf) {
        unsigned * r = registers;
        __get_cpuid_count(leaf, subleaf, &r[eax], &r[ebx], &r[ecx], &r[edx]);
    }

    bool has(Register reg, std::initializer_list<int> bits) const {
        for (int bit : bits) {
            if (!(registers[reg] >> bit & 1)) {
                return false;
            }
        }
        return true;
    }
};

// The registers that the operating system saves when it changes threads.
uint64_t saved_state() {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return uint64_t(high) << 32 | low;
}

// Linux hands out the tiles' eight kilobytes a thread only on request; the request is for all.
bool may_use_tiles() {
#if defined(__linux__)
    constexpr int request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

Cpu detect() {
    constexpr uint64_t ymm = 0x6, zmm = 0xe6, tiles = 0x60000;
    const Leaf basic(1, 0), extended(7, 0), more(7, 1);
    Cpu found{Isa::none, more.has(eax, {4}), more.has(eax, {5})};
    // FMA, OSXSAVE, AVX and F16C; AVX2
    if (!basic.has(ecx, {12, 27, 28, 29}) || !extended.has(ebx, {5})) {
        return found;
    }
    const uint64_t saved = saved_state();
    const bool avx512 = extended.has(ebx, {16, 17, 30, 31}) && extended.has(ecx, {11});
    if ((saved & ymm) == ymm) {
        found.isa = Isa::avx2;
    }
    if ((saved & zmm) == zmm && avx512) {
        found.isa = Isa::avx512;
    }
    const bool amx = extended.has(edx, {22, 24, 25}) && extended.has(ecx, {8});  // and GFNI
    if (found.isa == Isa::avx512 && found.avx512_bf16 && (saved & tiles) == tiles && amx &&
        may_use_tiles()) {
        found.isa = Isa::amx;
    }
    return found;
}

Cpu & current() {
    static Cpu found = detect();
    return found;
}

constexpr const char * names[] = {"none", "avx2", "avx512", "amx"};

}  // namespace

const Cpu & cpu() {
    return current();
}

const char * cpu_name() {
    return names[int(cpu().isa)];
}

void limit_cpu(const char * isa) {
    static const Cpu able = detect();
    current() = able;
    for (int i = 0; i < 4; i++) {
        if (std::strcmp(names[i], isa) == 0 && (Isa(i) <= able.isa || Isa(i) == Isa::amx)) {
            current().isa = Isa(i);
        }
    }
}

}  // namespace medusa
