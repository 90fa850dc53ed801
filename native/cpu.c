/* Which instructions this machine has. Own CPUID code: not every compiler ships __builtin_cpu_supports. */
#include "cpu.h"

#include <stddef.h>

#include "api.h"

static const char *const names[] = {"avx2", "avxvnni", "avx512", "avx512vnni", "avx512vbmi",
                                    "amxint8", "neon", "dotprod", "i8mm"};

const char *lt_cpu_feature_name(int32_t bit) {
    return bit >= 0 && bit < (int32_t)(sizeof names / sizeof *names) ? names[bit] : NULL;
}

#if defined(__x86_64__)
#include <cpuid.h>

/* The register state that the operating system saves: without it the instructions fault. */
static uint64_t xcr0(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

uint32_t lt_cpu_features(void) {
    uint32_t a, b, c, d, found = 0;
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
        if ((d & 1u << 25) && (saved & 0x60000) == 0x60000) found |= LT_AMXINT8;
    }
    return found;
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
