/* A few instructions, given as -DPROGRAM="..." in AT&T syntax, on memory whose first half is read from
   standard input and which is written to standard output. -DTHREAD is carried out by another thread after them, -DAFTERWARDS by the
   first one again. Linked at fixed addresses, so that an operand may be a name alone. */

#define _GNU_SOURCE
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef THREAD
#define THREAD ""
#endif
#ifndef AFTERWARDS
#define AFTERWARDS ""
#endif

/* A function made of these instructions, which may use all registers. */
#define FUNCTION(name, instructions)                                                          \
    extern void name(void);                                                                   \
    __asm__(#name ": push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"        \
            instructions "\npop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n")

FUNCTION(program, PROGRAM);
FUNCTION(of_thread, THREAD);
FUNCTION(afterwards, AFTERWARDS);

extern char memory[8192];
__asm__(".bss\n.balign 64\n.globl memory\nmemory:\n"
        "config: .zero 1024\n a: .zero 1024\n b: .zero 1024\n c: .zero 1024\n"
        "out: .zero 4096\n.text\n");

static void *in_thread(void *unused) {
    of_thread();
    return unused;
}

int main(void) {
    pthread_t thread;
    if (syscall(SYS_read, 0, memory, 4096) != 4096) return 2; /* a pipe gives so much in one piece */
#ifndef WITHOUT_PERMISSION
    if (syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */)) return 3;
#endif
    program();
    if (pthread_create(&thread, NULL, in_thread, NULL) || pthread_join(thread, NULL)) return 4;
    afterwards();
    return syscall(SYS_write, 1, memory, sizeof memory) != sizeof memory;
}
