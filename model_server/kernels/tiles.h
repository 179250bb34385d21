// AMX's instructions. Not the compiler's intrinsics: GCC's up to 13 don't say what they read.

#pragma once

#include <cstddef>
#include <cstdint>

namespace medusa {
namespace {

struct TileConfig {
    uint8_t palette = 0, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t num_rows[16] = {};
};

inline TileConfig stored_config() {
    TileConfig config;
    asm volatile("sttilecfg %0" : "=m"(config));
    return config;
}

inline void load_config(const TileConfig & config) {
    if (config.palette) {
        asm volatile("ldtilecfg %0" : : "m"(config));
    } else {
        asm volatile("tilerelease");
    }
}

template <int tile>
inline void zero_tile() {
    asm volatile("tilezero %%tmm%c0" : : "i"(tile));
}

// A tile's memory: what a load reads at most, and what is stored of sixteen rows side by side.
using TileMemory = char[16 * 64];

template <int tile>
inline void load_tile(const void * from, size_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2"
        : : "r"(from), "r"(stride), "i"(tile), "m"(*static_cast<const TileMemory *>(from)));
}

// A whole one, its rows side by side.
template <int tile>
inline void store_tile(void * to) {
    constexpr size_t stride = 64;
    asm volatile("tilestored %%tmm%c3, (%1,%2,1)"
        : "=m"(*static_cast<TileMemory *>(to)) : "r"(to), "r"(stride), "i"(tile));
}

// sums += a * b, of signed bytes.
template <int sums, int a, int b>
inline void multiply_bytes() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(a), "i"(b));
}

}  // namespace
}  // namespace medusa
