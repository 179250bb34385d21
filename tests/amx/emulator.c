/* AMX for processors without it: preloaded (LD_PRELOAD), it carries out the tile instructions that
   such a processor refuses (SIGILL), each thread with tiles of its own, and grants the permission that
   Linux wants asked for. What a processor with AMX refuses stays refused, with the same signal. Where
   there are tiles it has nothing to do.

   For programs that were told at compile time to use AMX: what CPUID says can't be changed from here.
   Semantics: Intel's Software Developer's Manual, volume 2, AMX-TILE, AMX-INT8 and AMX-BF16. An
   instruction takes 10 to 20 microseconds, most of it for the signal. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
#include <xmmintrin.h>

enum { NUM_TILES = 8, MAX_ROWS = 16, MAX_COLSB = 64 };
enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
enum { NP, P66, PF3, PF2 }; /* the prefix a VEX one stands for */

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t colsb[NUM_TILES], no_colsb[8]; /* width in bytes */
    uint8_t rows[NUM_TILES], no_rows[8];
} Config;

typedef union {
    uint8_t bytes[MAX_COLSB];
    uint16_t words[MAX_COLSB / 2];
    uint32_t dwords[MAX_COLSB / 4];
    float floats[MAX_COLSB / 4];
} Row;

typedef struct {
    int opcode, prefix, reg, rm, vvvv, length;
    bool in_memory, has_sib;
    char *address;
    long stride;
} Instruction;

static __thread Config config;
static __thread Row tiles[NUM_TILES][MAX_ROWS];
static volatile bool permitted;
static struct sigaction previous;

/* ---- Decoding: a three-byte VEX prefix, opcode map 0F38, 128 bits, W0 ---- */

static uint64_t value_of(int number, const greg_t *registers) {
    static const int names[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                  REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                  REG_R12, REG_R13, REG_R14, REG_R15};
    return (uint64_t)registers[names[number]];
}

/* The operand in memory, whose bytes begin at `code` (behind ModRM). Returns where they end. */
static const uint8_t *decode_memory(Instruction *in, const uint8_t *code, int mod, int x,
                                    const greg_t *registers) {
    int base = in->rm;
    uint64_t address = 0;
    bool relative = mod == 0 && (base & 7) == 5;
    in->has_sib = (base & 7) == 4;
    if (in->has_sib) {
        int sib = *code++, index = x << 3 | (sib >> 3 & 7);
        base = (base & 8) | (sib & 7);
        if (index != 4) in->stride = (long)(value_of(index, registers) << (sib >> 6));
    }
    bool no_base = mod == 0 && (base & 7) == 5;
    if (!no_base) address = value_of(base, registers);
    if (mod == 1) {
        address += (uint64_t)(int8_t)*code++;
    } else if (mod == 2 || no_base) {
        int32_t displacement;
        memcpy(&displacement, code, sizeof displacement);
        address += (uint64_t)displacement;
        code += sizeof displacement;
    }
    if (relative) address += (uint64_t)code; /* no immediate follows in any of them */
    in->address = (char *)address;
    return code;
}

static bool decode(Instruction *in, const greg_t *registers) {
    const uint8_t *start = (const uint8_t *)registers[REG_RIP], *code = start;
    if (*code++ != 0xC4) return false;
    int inverted = ~*code, map = *code & 31;
    code++;
    int last = *code++;
    if (map != 2 || last & 0x84) return false;
    in->vvvv = ~last >> 3 & 15;
    in->prefix = last & 3;
    in->opcode = *code++;
    int modrm = *code++;
    in->reg = (inverted >> 7 & 1) << 3 | (modrm >> 3 & 7);
    in->rm = (inverted >> 5 & 1) << 3 | (modrm & 7);
    in->in_memory = modrm >> 6 != 3;
    if (in->in_memory) code = decode_memory(in, code, modrm >> 6, inverted >> 6 & 1, registers);
    in->length = (int)(code - start);
    return true;
}

/* ---- Carrying out: each returns 0, or the signal that the processor's fault becomes ---- */

static bool is_valid(int tile) { return tile < NUM_TILES && config.rows[tile]; }

static int load_config(const void *address) {
    Config new, known = {0}; /* as given; without what must be zero */
    memcpy(&new, address, sizeof new);
    if (new.palette == 0) new = known;
    known.palette = new.palette, known.start_row = new.start_row;
    memcpy(known.colsb, new.colsb, sizeof known.colsb);
    memcpy(known.rows, new.rows, sizeof known.rows);
    bool wrong = new.palette > 1 || memcmp(&new, &known, sizeof new) != 0;
    for (int t = 0; t < NUM_TILES; t++)
        wrong |= new.rows[t] > MAX_ROWS || new.colsb[t] > MAX_COLSB || !new.rows[t] != !new.colsb[t];
    if (wrong) return SIGSEGV; /* a general protection fault */
    config = new;
    memset(tiles, 0, sizeof tiles);
    return 0;
}

/* Rows from start_row on, which only an interrupted instruction leaves above zero. */
static int move(const Instruction *in, bool store) {
    if (!in->has_sib || in->vvvv || !is_valid(in->reg)) return SIGILL;
    int rows = config.rows[in->reg], colsb = config.colsb[in->reg];
    if (config.start_row >= rows || colsb % 4) return SIGILL;
    Row *tile = tiles[in->reg];
    if (!store) memset(&tile[config.start_row], 0, sizeof(Row) * (MAX_ROWS - config.start_row));
    for (; config.start_row < rows; config.start_row++) {
        Row *row = &tile[config.start_row];
        char *memory = in->address + config.start_row * in->stride;
        if (store)
            memcpy(memory, row, colsb);
        else
            memcpy(row, memory, colsb);
    }
    config.start_row = 0;
    return 0;
}

/* Four products of bytes; sums wrap around. */
static uint32_t int8_dot(uint32_t sum, const uint8_t *a, const uint8_t *b, bool a_sign, bool b_sign) {
    for (int i = 0; i < 4; i++)
        sum += (uint32_t)((a_sign ? (int8_t)a[i] : a[i]) * (b_sign ? (int8_t)b[i] : b[i]));
    return sum;
}

static void int8_row(Row *c, const Row *a, const Row *b, int depth, bool a_sign, bool b_sign) {
    for (int k = 0; k < depth; k++)
        for (int n = 0; n < MAX_COLSB / 4; n++)
            c->dwords[n] = int8_dot(c->dwords[n], &a->bytes[4 * k], &b[k].bytes[4 * n], a_sign, b_sign);
}

static float widened(uint16_t bf16) {
    union {
        uint32_t bits;
        float value;
    } wide = {(uint32_t)bf16 << 16};
    return wide.value;
}

/* Even and odd elements have sums of their own, added at the end; each step is one fused rounding. */
__attribute__((noinline)) static void bf16_row(Row *c, const Row *a, const Row *b, int depth) {
    for (int n = 0; n < MAX_COLSB / 4; n++) {
        float sums[2] = {0, 0};
        for (int k = 0; k < depth; k++)
            for (int i = 0; i < 2; i++)
                sums[i] = __builtin_fmaf(widened(a->words[2 * k + i]),
                                         widened(b[k].words[2 * n + i]), sums[i]);
        c->floats[n] += sums[0] + sums[1];
    }
}

/* c[m][n] += a[m][k] . b[k][n], four bytes of k or two halves at a time. */
static int dot_product(const Instruction *in, bool is_bf16, bool a_sign, bool b_sign) {
    int c = in->reg, a = in->rm, b = in->vvvv;
    if (in->in_memory || !is_valid(c) || !is_valid(a) || !is_valid(b)) return SIGILL;
    if (c == a || a == b || c == b) return SIGILL;
    if (config.colsb[c] % 4 || config.colsb[a] % 4 || config.colsb[c] != config.colsb[b]) return SIGILL;
    if (config.rows[c] != config.rows[a] || config.colsb[a] / 4 != config.rows[b]) return SIGILL;
    /* To nearest even, denormals are zero, no exceptions; the program's own returns with its context. */
    if (is_bf16) _mm_setcsr(0x9FC0);
    for (int m = 0; m < config.rows[c]; m++) {
        Row *row = &tiles[c][m];
        if (is_bf16)
            bf16_row(row, &tiles[a][m], tiles[b], config.rows[b]);
        else
            int8_row(row, &tiles[a][m], tiles[b], config.rows[b], a_sign, b_sign);
    }
    config.start_row = 0;
    return 0;
}

static int configure(const Instruction *in) {
    if (in->vvvv || in->reg || !(in->in_memory || in->rm == 0)) return SIGILL;
    if (in->in_memory && in->prefix == NP) return load_config(in->address);
    if (in->in_memory)
        memcpy(in->address, &config, sizeof config);
    else
        load_config(&(Config){0});
    return 0;
}

static int zero(const Instruction *in) {
    if (in->in_memory || in->vvvv || in->rm || !is_valid(in->reg)) return SIGILL;
    memset(tiles[in->reg], 0, sizeof tiles[in->reg]);
    config.start_row = 0;
    return 0;
}

#define OP(opcode, prefix) ((opcode) << 2 | (prefix))

static int execute(const Instruction *in) {
    int op = OP(in->opcode, in->prefix);
    if (op == OP(0x49, NP) || (op == OP(0x49, P66) && in->in_memory)) return configure(in);
    if (!permitted) return SIGILL; /* to touch the tiles' data; a configuration is free */
    switch (op) {
        case OP(0x49, PF2): return zero(in);
        case OP(0x4B, PF2): return move(in, false); /* TILELOADD */
        case OP(0x4B, P66): return move(in, false); /* TILELOADDT1 */
        case OP(0x4B, PF3): return move(in, true);  /* TILESTORED */
        case OP(0x5E, PF2): return dot_product(in, false, true, true);   /* TDPBSSD */
        case OP(0x5E, PF3): return dot_product(in, false, true, false);  /* TDPBSUD */
        case OP(0x5E, P66): return dot_product(in, false, false, true);  /* TDPBUSD */
        case OP(0x5E, NP): return dot_product(in, false, false, false);  /* TDPBUUD */
        case OP(0x5C, PF3): return dot_product(in, true, true, true);    /* TDPBF16PS */
        default: return SIGILL;
    }
}

static void on_illegal(int number, siginfo_t *info, void *context) {
    (void)number, (void)info;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    Instruction in = {0};
    int fault = decode(&in, registers) ? execute(&in) : SIGILL;
    if (fault == 0)
        registers[REG_RIP] += in.length;
    else if (fault == SIGILL)
        sigaction(SIGILL, &previous, NULL); /* and the instruction is tried again, in earnest */
    else
        raise(fault);
}

__attribute__((constructor)) static void install(void) {
    struct sigaction action = {.sa_sigaction = on_illegal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaction(SIGILL, &action, &previous);
}

/* In place of the C library's: who asks for tiles is granted them, also where Linux has none. */
long syscall(long number, ...) {
    long given[6], (*real)(long, ...);
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++) given[i] = va_arg(list, long);
    va_end(list);
    *(void **)&real = dlsym(RTLD_NEXT, "syscall");
    long result = real(number, given[0], given[1], given[2], given[3], given[4], given[5]);
    if (number != SYS_arch_prctl || given[0] != ARCH_REQ_XCOMP_PERM || given[1] != XTILEDATA)
        return result;
    permitted = result != 0; /* else the processor's own tiles are in use from now on */
    return 0;
}

typedef struct {
    void *(*run)(void *), *argument;
    Config config;
} Start;

static void *start(void *given) {
    Start begun = *(Start *)given;
    free(given);
    config = begun.config;
    return begun.run(begun.argument);
}

/* In place of the C library's: Linux gives a new thread its parent's configuration, and empty tiles. */
int pthread_create(
    pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
    int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    *(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
    Start *given = malloc(sizeof *given);
    if (!given) return EAGAIN;
    *given = (Start){run, argument, config};
    int error = real(thread, attributes, start, given);
    if (error) free(given);
    return error;
}
