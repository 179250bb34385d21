/* Configures the tiles as llama.cpp does, from a structure on the stack. Writes what arrived, all 64
   bytes, and then the rows of tile 7 as _tile_storeconfig gives them; then it uses a tile. C and C++.
   -DSOURCE names a file with llama.cpp's own structure and function. */

#define _GNU_SOURCE
#include <immintrin.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef SOURCE
#include SOURCE
#else
typedef struct {
    uint8_t palette_id, start_row, reserved[14];
    uint16_t colsb[16];
    uint8_t rows[16];
} tile_config_t;

static void ggml_tile_config_init(void) {
    tile_config_t config = {};
    config.palette_id = 1;
    for (int tile = 0; tile < 8; tile++) {
        config.rows[tile] = tile < 2 ? 8 : 16;
        config.colsb[tile] = tile == 2 || tile == 3 ? 32 : 64;
    }
    _tile_loadconfig(&config);
}
#endif

#define APART __attribute__((noinline))

/* What isn't stored reads as zero then, in place of whatever was there. */
APART static void clear_the_stack(void) {
    volatile char used[4096];
    for (unsigned i = 0; i < sizeof used; i++) used[i] = 0;
}

APART static void configure(void) { ggml_tile_config_init(); }

APART static char rows_of_tile_7(void) {
    tile_config_t config = {};
    _tile_storeconfig(&config);
    return (char)config.rows[7];
}

int main(void) {
    char out[65];
    clear_the_stack();
    configure();
    __asm__ volatile("sttilecfg %0" : "=m"(*(char(*)[64])out) : : "memory");
    out[64] = rows_of_tile_7();
    if (write(1, out, sizeof out) != sizeof out) return 1;
    if (syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */)) return 2;
    __asm__ volatile("tilezero %tmm7");
    return 0;
}
