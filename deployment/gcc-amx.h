/* Lets GCC before 14 compile llama.cpp's AMX code: force-included (-include) into every C and C++ file.

   What goes wrong. A tile configuration is 64 bytes: palette, start row, and the width and the
   height of each tile. llama.cpp fills one on the stack and hands it to _tile_loadconfig
   (ggml_tile_config_init in ggml/src/ggml-cpu/amx/mmq.cpp). GCC before 14 makes of that call an asm
   whose memory operand is one pointer, 8 of the 64 bytes. Nobody reads the others as far as the
   compiler can see, so it drops the stores to them; what ldtilecfg loads has no tiles or stale ones,
   and the next tile instruction is illegal: the process dies by SIGILL in its first decode of more
   than one row. _tile_storeconfig has the same fault the other way round: only 8 bytes count as
   written, the others may be read from before.

   What this does. Both intrinsics become functions whose operand is all 64 bytes. The instructions
   stay the same, so it does no harm to a compiler that is right already (the fix may have been
   ported back to a GCC before 14).

   When it can go. When no compiler in use is a GCC before 14, where both are builtins that know
   their size. For _tile_loadconfig alone also when ggml_tile_config_init of the pinned llama.cpp
   holds its configuration in a constant (`static const` or `static constexpr`, in .rodata), which
   has no stores to lose. tests/deployment/test_gcc_amx.py shows what the compiler at hand does. */

#ifndef GCC_AMX_H
#define GCC_AMX_H

#if defined(__x86_64__) && defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ < 14 && !defined(__ASSEMBLER__)

#include <immintrin.h> /* first, since the names below must not reach its own definitions */

struct __attribute__((may_alias)) tile_config_64 {
    char bytes[64];
};

static inline void tile_loadconfig_64(const void *config) {
    __asm__ volatile("ldtilecfg\t%X0" : : "m"(*(const struct tile_config_64 *)config));
}

static inline void tile_storeconfig_64(void *config) {
    __asm__ volatile("sttilecfg\t%X0" : "=m"(*(struct tile_config_64 *)config));
}

#define _tile_loadconfig tile_loadconfig_64
#define _tile_storeconfig tile_storeconfig_64

#endif
#endif

#endif
