/* Sixteen floats, on every ISA with the same results to the last bit.
 *
 * A portable kernel sees only this type. Its sums run over sixteen lanes in one fixed order, its multiply-adds are
 * fused everywhere (fmaf in plain C), so a logit does not depend on the machine. Four bodies: AVX-512, AVX2,
 * NEON, plain C; what they share stands at the end.
 */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

/* An 8-bit float, E4M3, has the sign of a float16 and seven of the bits below it, but its exponent counts from 7, not
 * from 15. What is no number becomes 480. */
#define F8_IN_F16 0xbfff
#define F8_OF_F16 256.0f

#if defined(__AVX512F__) && !defined(LT_PLAIN)
#include <immintrin.h>

typedef __m512 f32x16;

static inline f32x16 vset1(float x) { return _mm512_set1_ps(x); }
static inline f32x16 vload(const float *p) { return _mm512_loadu_ps(p); }
static inline void vstore(float *p, f32x16 v) { _mm512_storeu_ps(p, v); }
static inline f32x16 vadd(f32x16 a, f32x16 b) { return _mm512_add_ps(a, b); }
static inline f32x16 vsub(f32x16 a, f32x16 b) { return _mm512_sub_ps(a, b); }
static inline f32x16 vmul(f32x16 a, f32x16 b) { return _mm512_mul_ps(a, b); }
static inline f32x16 vdiv(f32x16 a, f32x16 b) { return _mm512_div_ps(a, b); }
static inline f32x16 vfma(f32x16 a, f32x16 b, f32x16 c) { return _mm512_fmadd_ps(a, b, c); }
static inline f32x16 vfnma(f32x16 a, f32x16 b, f32x16 c) { return _mm512_fnmadd_ps(a, b, c); } /* c - a b */
static inline f32x16 vmax(f32x16 a, f32x16 b) { return _mm512_max_ps(a, b); }
static inline f32x16 vmin(f32x16 a, f32x16 b) { return _mm512_min_ps(a, b); }
static inline f32x16 vabs(f32x16 a) { return _mm512_abs_ps(a); }
static inline f32x16 vrint(f32x16 a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline f32x16 vexp2i(f32x16 n) { /* 2^n, n a whole number in -126..127 */
    return _mm512_scalef_ps(_mm512_set1_ps(1), n);
}
static inline f32x16 vload_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
static inline void vstore_i8(int8_t *p, f32x16 v) { /* whole numbers in -128..127 */
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
}
static inline f32x16 vload_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline void vstore_f16(uint16_t *p, f32x16 v) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline f32x16 vload_bf16(const uint16_t *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
static inline f32x16 vload_f8(const uint8_t *p) {
    __m256i half = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)), 7);
    half = _mm256_and_si256(half, _mm256_set1_epi16((short)F8_IN_F16));
    return _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(F8_OF_F16));
}

#elif defined(__AVX2__) && !defined(LT_PLAIN)
#include <immintrin.h>

typedef struct {
    __m256 a, b;
} f32x16;

#define LT_BOTH(expression_a, expression_b) ((f32x16){expression_a, expression_b})
static inline f32x16 vset1(float x) { return LT_BOTH(_mm256_set1_ps(x), _mm256_set1_ps(x)); }
static inline f32x16 vload(const float *p) { return LT_BOTH(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
static inline void vstore(float *p, f32x16 v) {
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
}
static inline f32x16 vadd(f32x16 x, f32x16 y) { return LT_BOTH(_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)); }
static inline f32x16 vsub(f32x16 x, f32x16 y) { return LT_BOTH(_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)); }
static inline f32x16 vmul(f32x16 x, f32x16 y) { return LT_BOTH(_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)); }
static inline f32x16 vdiv(f32x16 x, f32x16 y) { return LT_BOTH(_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)); }
static inline f32x16 vfma(f32x16 x, f32x16 y, f32x16 z) {
    return LT_BOTH(_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b));
}
static inline f32x16 vfnma(f32x16 x, f32x16 y, f32x16 z) {
    return LT_BOTH(_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b));
}
static inline f32x16 vmax(f32x16 x, f32x16 y) { return LT_BOTH(_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)); }
static inline f32x16 vmin(f32x16 x, f32x16 y) { return LT_BOTH(_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)); }
static inline f32x16 vabs(f32x16 x) {
    __m256 sign = _mm256_set1_ps(-0.0f);
    return LT_BOTH(_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b));
}
static inline f32x16 vrint(f32x16 x) {
    enum { NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
    return LT_BOTH(_mm256_round_ps(x.a, NEAREST), _mm256_round_ps(x.b, NEAREST));
}
static inline __m256 exp2i_half(__m256 n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
static inline f32x16 vexp2i(f32x16 n) { return LT_BOTH(exp2i_half(n.a), exp2i_half(n.b)); }
static inline f32x16 widen_i8(__m128i bytes) {
    return LT_BOTH(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                   _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))));
}
static inline f32x16 vload_i8(const int8_t *p) { return widen_i8(_mm_loadu_si128((const __m128i *)p)); }
static inline void vstore_i8(int8_t *p, f32x16 v) {
    __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(v.a), _mm256_cvtps_epi32(v.b)); /* a0 b0 a1 b1 */
    words = _mm256_permute4x64_epi64(words, 0xd8);
    _mm_storeu_si128((__m128i *)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
static inline f32x16 vload_f16(const uint16_t *p) {
    return LT_BOTH(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                   _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8))));
}
static inline void vstore_f16(uint16_t *p, f32x16 v) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(v.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(v.b, _MM_FROUND_TO_NEAREST_INT));
}
static inline __m256 load_bf16_half(const uint16_t *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
static inline f32x16 vload_bf16(const uint16_t *p) { return LT_BOTH(load_bf16_half(p), load_bf16_half(p + 8)); }
static inline __m256 load_f8_half(const uint8_t *p) {
    __m128i half = _mm_slli_epi16(_mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i *)p)), 7);
    half = _mm_and_si128(half, _mm_set1_epi16((short)F8_IN_F16));
    return _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(F8_OF_F16));
}
static inline f32x16 vload_f8(const uint8_t *p) { return LT_BOTH(load_f8_half(p), load_f8_half(p + 8)); }

#elif defined(__aarch64__) && !defined(LT_PLAIN)
#include <arm_neon.h>

typedef struct {
    float32x4_t q[4];
} f32x16;

#define LT_EACH(expression)                                                                                     \
    f32x16 r;                                                                                                   \
    for (int i = 0; i < 4; i++) r.q[i] = expression;                                                            \
    return r
static inline f32x16 vset1(float x) { LT_EACH(vdupq_n_f32(x)); }
static inline f32x16 vload(const float *p) { LT_EACH(vld1q_f32(p + 4 * i)); }
static inline void vstore(float *p, f32x16 v) {
    for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, v.q[i]);
}
static inline f32x16 vadd(f32x16 x, f32x16 y) { LT_EACH(vaddq_f32(x.q[i], y.q[i])); }
static inline f32x16 vsub(f32x16 x, f32x16 y) { LT_EACH(vsubq_f32(x.q[i], y.q[i])); }
static inline f32x16 vmul(f32x16 x, f32x16 y) { LT_EACH(vmulq_f32(x.q[i], y.q[i])); }
static inline f32x16 vdiv(f32x16 x, f32x16 y) { LT_EACH(vdivq_f32(x.q[i], y.q[i])); }
static inline f32x16 vfma(f32x16 x, f32x16 y, f32x16 z) { LT_EACH(vfmaq_f32(z.q[i], x.q[i], y.q[i])); }
static inline f32x16 vfnma(f32x16 x, f32x16 y, f32x16 z) { LT_EACH(vfmsq_f32(z.q[i], x.q[i], y.q[i])); }
static inline f32x16 vmax(f32x16 x, f32x16 y) { LT_EACH(vmaxq_f32(x.q[i], y.q[i])); }
static inline f32x16 vmin(f32x16 x, f32x16 y) { LT_EACH(vminq_f32(x.q[i], y.q[i])); }
static inline f32x16 vabs(f32x16 x) { LT_EACH(vabsq_f32(x.q[i])); }
static inline f32x16 vrint(f32x16 x) { LT_EACH(vrndnq_f32(x.q[i])); }
static inline f32x16 vexp2i(f32x16 n) {
    LT_EACH(vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n.q[i]), vdupq_n_s32(127)), 23)));
}
static inline f32x16 widen_i8(int8x16_t bytes) {
    int16x8_t words[2] = {vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes))};
    LT_EACH(vcvtq_f32_s32(vmovl_s16(i & 1 ? vget_high_s16(words[i / 2]) : vget_low_s16(words[i / 2]))));
}
static inline f32x16 vload_i8(const int8_t *p) { return widen_i8(vld1q_s8(p)); }
static inline void vstore_i8(int8_t *p, f32x16 v) {
    int16x4_t w[4];
    for (int i = 0; i < 4; i++) w[i] = vmovn_s32(vcvtnq_s32_f32(v.q[i]));
    vst1q_s8(p, vcombine_s8(vmovn_s16(vcombine_s16(w[0], w[1])), vmovn_s16(vcombine_s16(w[2], w[3]))));
}
static inline f32x16 vload_f16(const uint16_t *p) {
    LT_EACH(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))));
}
static inline void vstore_f16(uint16_t *p, f32x16 v) {
    for (int i = 0; i < 4; i++) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(v.q[i])));
}
static inline f32x16 vload_bf16(const uint16_t *p) { LT_EACH(vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16))); }
static inline f32x16 vload_f8(const uint8_t *p) {
    int8x16_t bytes = vreinterpretq_s8_u8(vld1q_u8(p));
    int16x8_t words[2] = {vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes))};
    uint16x8_t mask = vdupq_n_u16(F8_IN_F16), half[2];
    for (int i = 0; i < 2; i++) half[i] = vandq_u16(vreinterpretq_u16_s16(vshlq_n_s16(words[i], 7)), mask);
    LT_EACH(vmulq_n_f32(
        vcvt_f32_f16(vreinterpret_f16_u16(i & 1 ? vget_high_u16(half[i / 2]) : vget_low_u16(half[i / 2]))), F8_OF_F16));
}

#else /* plain C: the reference of the others */

typedef struct {
    float f[16];
} f32x16;

#define LT_EACH(expression)                                                                                     \
    f32x16 r;                                                                                                   \
    for (int i = 0; i < 16; i++) r.f[i] = expression;                                                           \
    return r
static inline float bits_to_float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
static inline uint32_t float_to_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof f);
    return bits;
}
static inline float f16_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = h & 0x7fff;
    if (magnitude >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    float f = bits_to_float(magnitude << 13) * 0x1p112f; /* rebias; exact for subnormals too */
    return bits_to_float(float_to_bits(f) | sign);
}
static inline uint16_t float_to_f16(float f) { /* round to nearest, ties to even */
    uint32_t bits = float_to_bits(f), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff)); /* NaN, made quiet */
    if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* rounds to infinity */
    if (magnitude < 0x38800000) {                                  /* subnormal: let the adder round */
        float rounded = bits_to_float(magnitude) + 0.5f;
        return (uint16_t)(sign | (float_to_bits(rounded) - float_to_bits(0.5f)));
    }
    magnitude += 0xfff + (magnitude >> 13 & 1);
    return (uint16_t)(sign | (magnitude - 0x38000000) >> 13);
}
static inline f32x16 vset1(float x) { LT_EACH(x); }
static inline f32x16 vload(const float *p) { LT_EACH(p[i]); }
static inline void vstore(float *p, f32x16 v) { memcpy(p, v.f, sizeof v.f); }
static inline f32x16 vadd(f32x16 x, f32x16 y) { LT_EACH(x.f[i] + y.f[i]); }
static inline f32x16 vsub(f32x16 x, f32x16 y) { LT_EACH(x.f[i] - y.f[i]); }
static inline f32x16 vmul(f32x16 x, f32x16 y) { LT_EACH(x.f[i] * y.f[i]); }
static inline f32x16 vdiv(f32x16 x, f32x16 y) { LT_EACH(x.f[i] / y.f[i]); }
static inline f32x16 vfma(f32x16 x, f32x16 y, f32x16 z) { LT_EACH(fmaf(x.f[i], y.f[i], z.f[i])); }
static inline f32x16 vfnma(f32x16 x, f32x16 y, f32x16 z) { LT_EACH(fmaf(-x.f[i], y.f[i], z.f[i])); }
static inline f32x16 vmax(f32x16 x, f32x16 y) { LT_EACH(x.f[i] > y.f[i] ? x.f[i] : y.f[i]); }
static inline f32x16 vmin(f32x16 x, f32x16 y) { LT_EACH(x.f[i] < y.f[i] ? x.f[i] : y.f[i]); }
static inline f32x16 vabs(f32x16 x) { LT_EACH(fabsf(x.f[i])); }
static inline f32x16 vrint(f32x16 x) { LT_EACH(rintf(x.f[i])); }
static inline f32x16 vexp2i(f32x16 n) { LT_EACH(bits_to_float((uint32_t)((int32_t)n.f[i] + 127) << 23)); }
static inline f32x16 vload_i8(const int8_t *p) { LT_EACH((float)p[i]); }
static inline void vstore_i8(int8_t *p, f32x16 v) {
    for (int i = 0; i < 16; i++) p[i] = (int8_t)v.f[i];
}
static inline f32x16 vload_f16(const uint16_t *p) { LT_EACH(f16_to_float(p[i])); }
static inline void vstore_f16(uint16_t *p, f32x16 v) {
    for (int i = 0; i < 16; i++) p[i] = float_to_f16(v.f[i]);
}
static inline f32x16 vload_bf16(const uint16_t *p) { LT_EACH(bits_to_float((uint32_t)p[i] << 16)); }
static inline f32x16 vload_f8(const uint8_t *p) {
    LT_EACH(f16_to_float((uint16_t)((p[i] & 0x80) << 8 | (p[i] & 0x7f) << 7)) * F8_OF_F16);
}
#endif

/* The first n < 16 elements; the other lanes are 0. */
#define LT_PARTIAL_LOAD(name, load, type)                                                                       \
    static inline f32x16 name(const type *p, int32_t n) {                                                       \
        type lanes[16] = {0};                                                                                   \
        memcpy(lanes, p, (size_t)n * sizeof *p);                                                                \
        return load(lanes);                                                                                     \
    }
LT_PARTIAL_LOAD(vloadn, vload, float)
LT_PARTIAL_LOAD(vloadn_i8, vload_i8, int8_t)
LT_PARTIAL_LOAD(vloadn_f16, vload_f16, uint16_t)
LT_PARTIAL_LOAD(vloadn_bf16, vload_bf16, uint16_t)
LT_PARTIAL_LOAD(vloadn_f8, vload_f8, uint8_t)

#define LT_PARTIAL_STORE(name, store, type)                                                                     \
    static inline void name(type *p, f32x16 v, int32_t n) {                                                     \
        type lanes[16];                                                                                         \
        store(lanes, v);                                                                                        \
        memcpy(p, lanes, (size_t)n * sizeof *p);                                                                \
    }
LT_PARTIAL_STORE(vstoren, vstore, float)
LT_PARTIAL_STORE(vstoren_i8, vstore_i8, int8_t)
LT_PARTIAL_STORE(vstoren_f16, vstore_f16, uint16_t)

/* The lanes' sum, always in the order of a binary tree: each half of the lanes is added to the other. */
#if defined(__AVX2__) && !defined(LT_PLAIN)
static inline __m256 low_half(f32x16 v) {
#ifdef __AVX512F__
    return _mm512_castps512_ps256(v);
#else
    return v.a;
#endif
}
static inline __m256 high_half(f32x16 v) {
#ifdef __AVX512F__
    return _mm512_extractf32x8_ps(v, 1);
#else
    return v.b;
#endif
}
#define LT_ACROSS(name, with8, with4)                                                                           \
    static inline float name(f32x16 v) {                                                                        \
        const __m256 eight = with8(low_half(v), high_half(v));                                                  \
        __m128 x = with4(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));                       \
        x = with4(x, _mm_movehl_ps(x, x));                                                                      \
        return _mm_cvtss_f32(with4(x, _mm_movehdup_ps(x)));                                                     \
    }
LT_ACROSS(vsum, _mm256_add_ps, _mm_add_ps)
LT_ACROSS(vhmax, _mm256_max_ps, _mm_max_ps)
#else
static inline float vsum(f32x16 v) {
    float f[16];
    vstore(f, v);
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) f[i] += f[i + half];
    return f[0];
}
static inline float vhmax(f32x16 v) {
    float f[16];
    vstore(f, v);
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) f[i] = f[i] > f[i + half] ? f[i] : f[i + half];
    return f[0];
}
#endif

static inline float vfirst(f32x16 v) {
    float f[16];
    vstore(f, v);
    return f[0];
}

/* x = n ln 2 + r, |r| <= ln 2 / 2, for -87 <= x <= 88; gives n, r, and the polynomial p of e^r ~ 1 + r + p r^2 (Cephes
 * expf), of `count` vectors side by side: of one, each step waits for the step before. */
static inline __attribute__((always_inline)) void exp_parts(const f32x16 *x, f32x16 *n, f32x16 *r, f32x16 *p, int count) {
    static const float c[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
    for (int i = 0; i < count; i++) r[i] = vmax(vmin(x[i], vset1(88.0f)), vset1(-87.0f));
    for (int i = 0; i < count; i++) n[i] = vrint(vmul(r[i], vset1(1.44269504f)));
    for (int i = 0; i < count; i++) /* ln 2 in two parts: the first has few bits, so n * it is exact */
        r[i] = vfma(n[i], vset1(-0.693359375f), r[i]);
    for (int i = 0; i < count; i++) r[i] = vfma(n[i], vset1(2.12194440e-4f), r[i]);
    for (int i = 0; i < count; i++) p[i] = vset1(1.9875691500e-4f);
#pragma GCC unroll 5
    for (int k = 0; k < 5; k++)
        for (int i = 0; i < count; i++) p[i] = vfma(p[i], r[i], vset1(c[k]));
}

/* x = e^x to 1-2 units in the last place, up to 8 vectors side by side. */
static inline __attribute__((always_inline)) void vexps(f32x16 *x, int count) {
    f32x16 n[8], r[8], p[8];
    exp_parts(x, n, r, p, count);
    for (int i = 0; i < count; i++) p[i] = vfma(vmul(p[i], r[i]), r[i], vadd(r[i], vset1(1.0f)));
    for (int i = 0; i < count; i++) x[i] = vmul(p[i], vexp2i(n[i]));
}

static inline f32x16 vexp(f32x16 x) {
    vexps(&x, 1);
    return x;
}

/* tanh x to a few units in the last place: m / (m + 2) with m = e^2x - 1, in which nothing is lost around 0. */
static inline f32x16 vtanh(f32x16 x) {
    f32x16 n, r, p;
    x = vadd(x, x);
    exp_parts(&x, &n, &r, &p, 1);
    const f32x16 power = vexp2i(n), m = vfma(vfma(vmul(p, r), r, r), power, vsub(power, vset1(1)));
    return vdiv(m, vadd(m, vset1(2)));
}

/* x bent towards -cap..cap: cap * tanh(x / cap) (soft-capping: Bello et al. 2017). */
static inline f32x16 vcap(f32x16 x, float cap) {
    return vmul(vtanh(vdiv(x, vset1(cap))), vset1(cap));
}
