/* Which instructions this machine has. Own CPUID code: not every compiler ships __builtin_cpu_supports. */
#include "cpu.h"

#include <stddef.h>

#include "api.h"

static const char *const names[] = {"avx2", "avxvnni", "avx512", "avx512vnni", "avx512vbmi",
                                    "amx", "neon", "dotprod", "i8mm"};

const char *lt_cpu_feature_name(int32_t bit) {
    return bit >= 0 && bit < (int32_t)(sizeof names / sizeof *names) ? names[bit] : NULL;
}

#if defined(__x86_64__)
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* The register state that the operating system saves: without it the instructions fault. */
static uint64_t xcr0(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

#ifdef LT_ISA_amx
#include "amx.h"

/* Linux gives a process these registers on request; old versions, and some sandboxes, do not. */
static int amx_allowed(void) {
#ifdef LT_EMULATE_AMX
    return 1;
#elif defined(__linux__)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
#else
    return 0;
#endif
}

/* One product, beside plain C: it was written without a machine that has AMX. */
static int amx_works(int32_t tokens, int32_t steps) {
    int8_t codes[AMX_ROWS][AMX_BYTES];
    uint8_t weights[AMX_ROWS][AMX_BYTES];
    int32_t sums[AMX_ROWS][AMX_ROWS];
    for (int i = 0; i < AMX_ROWS * AMX_BYTES; i++) {
        codes[i / AMX_BYTES][i % AMX_BYTES] = (int8_t)(i * 37);
        weights[i / AMX_BYTES][i % AMX_BYTES] = (uint8_t)(i * 101);
    }
    amx_begin(tokens, steps);
    amx_zero(0);
    amx_load(4, codes, AMX_BYTES);
    amx_load(6, weights, AMX_BYTES);
    amx_dot(0, 4, 6);
    amx_store(0, sums, AMX_BYTES);
    amx_end();
    for (int32_t t = 0; t < tokens; t++)
        for (int32_t r = 0; r < AMX_ROWS; r++) {
            for (int32_t i = 0; i < 4 * steps; i++) sums[t][r] -= codes[t][i] * weights[i / 4][4 * r + i % 4];
            if (sums[t][r] != 0) return 0;
        }
    return 1;
}

static const char *amx_trouble(void) {
    if (!amx_allowed()) return "amx: the operating system does not allow it";
    if (!amx_works(AMX_ROWS, AMX_ROWS) || !amx_works(9, 4)) return "amx: its products were wrong";
    return NULL;
}
#else
static const char *amx_trouble(void) { return "amx: this build has no kernels for it"; }
#endif

static uint32_t find(const char **refused) {
    uint32_t a, b, c, d, found = 0;
    *refused = NULL;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    const uint32_t osxsave = 1u << 27, avx = 1u << 28, fma = 1u << 12, f16c = 1u << 29;
    const uint32_t avx_leaf1 = osxsave | avx | fma | f16c;
    if ((c & avx_leaf1) != avx_leaf1) return 0;
    const uint64_t saved = xcr0();
    if ((saved & 0x6) != 0x6) return 0; /* XMM and YMM */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    if (!(b & 1u << 5)) return 0;
    found |= LT_AVX2;
    uint32_t a1, b1, c1, d1;
    if (a >= 1 && __get_cpuid_count(7, 1, &a1, &b1, &c1, &d1) && (a1 & 1u << 4)) found |= LT_AVXVNNI;
    const uint32_t avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    if ((b & avx512) == avx512 && (saved & 0xe6) == 0xe6) {
        found |= LT_AVX512;
        if (c & 1u << 11) found |= LT_VNNI;
        if (c & 1u << 1) found |= LT_VBMI;
#ifdef LT_EMULATE_AMX
        const int amx = 1;
#else
        const int amx = (d & 3u << 24) == 3u << 24 && (saved & 0x60000) == 0x60000; /* TILE and INT8 */
#endif
        if (amx && (*refused = amx_trouble()) == NULL) found |= LT_AMX;
    }
    return found;
}

uint32_t lt_cpu_features(void) {
    const char *refused;
    return find(&refused);
}

const char *lt_cpu_refused(void) {
    const char *refused;
    find(&refused);
    return refused;
}

#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

uint32_t lt_cpu_features(void) {
    uint32_t found = LT_NEON;
    if (getauxval(AT_HWCAP) & 1ul << 20) found |= LT_DOTPROD;
    if (getauxval(AT_HWCAP2) & 1ul << 13) found |= LT_I8MM;
    return found;
}

#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>

static int has(const char *key) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(key, &value, &size, NULL, 0) == 0 && value;
}

uint32_t lt_cpu_features(void) {
    uint32_t found = LT_NEON;
    if (has("hw.optional.arm.FEAT_DotProd")) found |= LT_DOTPROD;
    if (has("hw.optional.arm.FEAT_I8MM")) found |= LT_I8MM;
    return found;
}

#else
uint32_t lt_cpu_features(void) { return 0; }
#endif

#ifndef __x86_64__
const char *lt_cpu_refused(void) { return NULL; }
#endif
