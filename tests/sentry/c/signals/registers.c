/* Registers survive a handler: general ones, x87, SSE, AVX, the flags; and what a handler changes in its frame counts. */
#include "check.h"
#include <cpuid.h>
#include <fenv.h>
#include <immintrin.h>
#include <signal.h>
#include <sys/time.h>
#include <ucontext.h>

static volatile sig_atomic_t count;
static int have_avx;

__attribute__((target("avx"))) static void trash_avx(void) {
    __m256i v = _mm256_set1_epi8(0x5a);
    __asm__ volatile("vmovdqa %0, %%ymm0; vmovdqa %0, %%ymm7; vmovdqa %0, %%ymm15" ::"x"(v) : "xmm0", "xmm7", "xmm15");
}

static void trash(int signo) {
    (void)signo;
    count++;
    unsigned mxcsr = _mm_getcsr();
    CHECK((mxcsr & ~0x3fu) == 0x1f80); /* a fresh state, whatever was interrupted */
    CHECK(fegetround() == FE_TONEAREST);
    if (have_avx)
        trash_avx();
    __asm__ volatile("pcmpeqb %%xmm1, %%xmm1; fldpi; fstp %%st(0)" ::: "xmm1");
    fesetround(FE_UPWARD);
}

__attribute__((target("avx"))) static void test_avx(void) {
    unsigned char in[3][32], out[3][32];
    for (int i = 0; i < 96; i++)
        in[i / 32][i % 32] = (unsigned char)(i * 7 + 1);
    pid_t pid = getpid();
    long result;
    __asm__ volatile(
        "vmovdqu (%[in]), %%ymm0; vmovdqu 32(%[in]), %%ymm7; vmovdqu 64(%[in]), %%ymm15\n\t"
        "syscall\n\t"
        "vmovdqu %%ymm0, (%[out]); vmovdqu %%ymm7, 32(%[out]); vmovdqu %%ymm15, 64(%[out])"
        : "=a"(result)
        : "a"(62L), "D"((long)pid), "S"((long)SIGUSR1), [in] "r"(in), [out] "r"(out)
        : "rcx", "r11", "memory", "xmm0", "xmm7", "xmm15");
    CHECK(result == 0);
    CHECK(memcmp(in, out, sizeof in) == 0);
}

static void test_general(void) {
    /* All of them, over a kill(2) of ourselves. */
    unsigned long in[10] = {0x1111, 0x2222, 0x3333, 0x4444, 0x5555, 0x6666, 0x7777, 0x8888, 0x9999, 0xaaaa}, out[10];
    register long pid __asm__("rdi") = getpid();
    register long signo __asm__("rsi") = SIGUSR1;
    long result;
    __asm__ volatile(
        "push %%rbp; push %%rbx\n\t"
        "mov %[in], %%r9; mov (%%r9), %%rbx; mov 8(%%r9), %%rbp; mov 16(%%r9), %%r12; mov 24(%%r9), %%r13\n\t"
        "mov 32(%%r9), %%r14; mov 40(%%r9), %%r15; mov 48(%%r9), %%r8; mov 56(%%r9), %%r10; mov 64(%%r9), %%rdx\n\t"
        "std\n\t"
        "mov $62, %%eax; syscall\n\t"
        "pushfq; cld\n\t"
        "mov %%rbx, 0(%%r9); mov %%rbp, 8(%%r9); mov %%r12, 16(%%r9); mov %%r13, 24(%%r9)\n\t"
        "mov %%r14, 32(%%r9); mov %%r15, 40(%%r9); mov %%r8, 48(%%r9); mov %%r10, 56(%%r9); mov %%rdx, 64(%%r9)\n\t"
        "pop %%r8; mov %%r8, 72(%%r9)\n\t"
        "pop %%rbx; pop %%rbp"
        : "=a"(result)
        : [in] "r"(memcpy(out, in, sizeof in)), "r"(pid), "r"(signo)
        : "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc");
    CHECK(result == 0);
    CHECK(memcmp(in, out, 9 * sizeof *in) == 0);
    CHECK(out[9] & 0x400); /* the direction flag came back, though the handler ran without it */
}

static void test_rounding(void) {
    fesetround(FE_DOWNWARD);
    count = 0;
    raise(SIGUSR1);
    CHECK(count == 1);
    CHECK(fegetround() == FE_DOWNWARD);
    fesetround(FE_TONEAREST);
}

/* Computing goes on correctly while signals come at any moment. */
static void test_storm(void) {
    struct itimerval it = {{0, 2000}, {0, 2000}};
    count = 0;
    setitimer(ITIMER_REAL, &it, NULL);
    double sum = 0, same = 0;
    unsigned long hash = 1, hash_again = 1;
    while (count < 50) {
        double x = 0;
        for (int i = 1; i < 20000; i++) {
            x += 1.0 / i;
            hash = hash * 6364136223846793005UL + 1442695040888963407UL;
        }
        for (int i = 1; i < 20000; i++)
            hash_again = hash_again * 6364136223846793005UL + 1442695040888963407UL;
        if (same == 0)
            same = x;
        CHECK(x == same);
        CHECK(hash == hash_again);
        sum += x;
    }
    it = (struct itimerval){{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &it, NULL);
    CHECK(sum > 0);
}

/* The frame can be written: here, a faulting instruction gets another register, and is skipped elsewhere. */
static long target_word = 42;
static void mend(int signo, siginfo_t *info, void *context) {
    ucontext_t *uc = context;
    (void)signo;
    CHECK(info->si_addr == (void *)8);
    CHECK(uc->uc_mcontext.gregs[REG_TRAPNO] == 14);
    CHECK(uc->uc_mcontext.gregs[REG_CR2] == 8);
    uc->uc_mcontext.gregs[REG_RBX] = (greg_t)&target_word - 8;
    count++;
}

static unsigned char *fpu_area;
static void change_sse(int signo, siginfo_t *info, void *context) {
    ucontext_t *uc = context;
    (void)signo;
    (void)info;
    fpu_area = (unsigned char *)uc->uc_mcontext.fpregs;
    CHECK(((unsigned long)fpu_area & 63) == 0);
    unsigned *software = (unsigned *)(fpu_area + 464);
    CHECK(software[0] == 0x46505853);
    unsigned size = software[4];
    CHECK(size >= 576 && software[1] == size + 4);
    CHECK(*(unsigned *)(fpu_area + size) == 0x46505845);
    memset(fpu_area + 160 + 3 * 16, 0x77, 16); /* xmm3 */
}

static void no_fpu(int signo, siginfo_t *info, void *context) {
    (void)signo;
    (void)info;
    ((ucontext_t *)context)->uc_mcontext.fpregs = NULL;
}

static void test_frame(void) {
    struct sigaction sa = {.sa_sigaction = mend, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &sa, NULL);
    long value = 0;
    count = 0;
    __asm__ volatile("xor %%ebx, %%ebx; mov 8(%%rbx), %0" : "=r"(value) : : "rbx", "memory");
    CHECK(value == 42 && count == 1);
    sa.sa_sigaction = change_sse;
    sigaction(SIGUSR2, &sa, NULL);
    unsigned char out[16];
    long result;
    __asm__ volatile("pxor %%xmm3, %%xmm3; syscall; movdqu %%xmm3, (%[out])"
                     : "=a"(result)
                     : "a"(62L), "D"((long)getpid()), "S"((long)SIGUSR2), [out] "r"(out)
                     : "rcx", "r11", "memory", "xmm3");
    CHECK(result == 0 && out[0] == 0x77 && out[15] == 0x77);
    /* Without an FPU state in the frame the initial one is loaded. */
    sa.sa_sigaction = no_fpu;
    sigaction(SIGUSR2, &sa, NULL);
    fesetround(FE_DOWNWARD);
    raise(SIGUSR2);
    CHECK(fegetround() == FE_TONEAREST);
}

int main(void) {
    unsigned a, b, c, d;
    struct sigaction sa = {.sa_handler = trash};
    sigaction(SIGUSR1, &sa, NULL);
    sigaction(SIGALRM, &sa, NULL);
    if (__get_cpuid(1, &a, &b, &c, &d))
        have_avx = (c >> 28 & 1) && (c >> 27 & 1);
    test_general();
    if (have_avx)
        test_avx();
    test_rounding();
    test_storm();
    test_frame();
    DONE();
}
