/* peak(counts, sums, weights, codes; steps): `steps` times STEP multiply-adds of unsigned by signed bytes in registers,
 * and nothing else: the rate of arithmetic that others are measured by, so it must not be slow. Reports how many there
 * were and what they add up to, modulo 2^32.
 *
 * Independent sums hide the latency of the instruction. The assembler is there so that the compiler neither drops a
 * product nor takes one for another, and keeps what it says in registers.
 *
 * weights: bytes of 0..2, so that sums of 16 bits, where an ISA has no wider ones, are widened rarely. */
#include "../kernel.h"

/* Unrolled wherever they are touched, or gcc keeps them in memory. */
#define EACH_CHAIN _Pragma("GCC unroll 24") for (int i = 0; i < CHAINS; i++)

enum {
    BYTES = 16,
    STEP = 1536,
    NARROW = 64, /* products of 127 by 2, two of which AVX2 adds up at once, that 16 bits hold */
};

#ifdef LT_AMX_TILES
#include "../../amx.h"

/* A product of two registers makes 16 x 16 x 64 multiply-adds, so every 64 steps are six of them: one for each
 * register that is not an operand. All have the same shape here. */
static uint32_t products(const uint8_t *weights, const int8_t *codes, int32_t steps) {
    uint8_t w[AMX_ROWS][AMX_BYTES]; /* [step][16 rows][4]: any four steps are the weights, for every row */
    int8_t c[AMX_ROWS][AMX_BYTES];
    uint32_t sums[6][AMX_ROWS][AMX_ROWS], total = 0;
    for (int r = 0; r < AMX_ROWS; r++)
        for (int i = 0; i < AMX_BYTES; i++) {
            w[r][i] = weights[r % 4 * 4 + i % 4];
            c[r][i] = codes[i % BYTES];
        }
    amx_begin(AMX_ROWS, AMX_ROWS);
#define EACH_PRODUCT(x) x(0) x(1) x(2) x(3) x(4) x(5)
#define ZERO(i) amx_zero(i);
#define DOT(i) amx_dot(i, 6, 7);
#define STORE(i) amx_store(i, sums[i], AMX_BYTES);
    EACH_PRODUCT(ZERO)
    amx_load(6, c, AMX_BYTES);
    amx_load(7, w, AMX_BYTES);
    for (int32_t s = 0; s < steps; s += NARROW) {
        EACH_PRODUCT(DOT)
    }
    EACH_PRODUCT(STORE)
    amx_end();
    for (int i = 0; i < 6; i++)
        for (int t = 0; t < AMX_ROWS; t++)
            for (int r = 0; r < AMX_ROWS; r++) total += sums[i][t][r];
    return total;
}

#elif defined(__AVX512VNNI__) && !defined(LT_PLAIN)
#include <immintrin.h>

enum { CHAINS = STEP / 64 };

static uint32_t products(const uint8_t *weights, const int8_t *codes, int32_t steps) {
    const __m512i w = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)weights));
    const __m512i c = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)codes));
    __m512i sums[CHAINS];
    EACH_CHAIN sums[i] = _mm512_setzero_si512();
    for (int32_t s = 0; s < steps; s++) {
        EACH_CHAIN __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sums[i]) : "v"(w), "v"(c));
    }
    __m512i total = _mm512_setzero_si512();
    EACH_CHAIN total = _mm512_add_epi32(total, sums[i]);
    return (uint32_t)_mm512_reduce_add_epi32(total);
}

#elif defined(__AVX2__) && !defined(LT_PLAIN)
#include <immintrin.h>

static uint32_t lanes(__m256i v) {
    uint32_t lane[8], sum = 0;
    memcpy(lane, &v, sizeof lane);
    for (int i = 0; i < 8; i++) sum += lane[i];
    return sum;
}

#ifdef __AVXVNNI__
enum { CHAINS = 12, ROUNDS = STEP / (CHAINS * 32) };

static uint32_t products(const uint8_t *weights, const int8_t *codes, int32_t steps) {
    const __m256i w = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)weights));
    const __m256i c = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)codes));
    __m256i sums[CHAINS];
    EACH_CHAIN sums[i] = _mm256_setzero_si256();
    for (int32_t s = 0; s < steps * ROUNDS; s++) {
        EACH_CHAIN __asm__ volatile("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums[i]) : "x"(w), "x"(c));
    }
    __m256i total = _mm256_setzero_si256();
    EACH_CHAIN total = _mm256_add_epi32(total, sums[i]);
    return lanes(total);
}
#else
enum { CHAINS = 8, ROUNDS = STEP / (CHAINS * 32) };

static uint32_t products(const uint8_t *weights, const int8_t *codes, int32_t steps) {
    const __m256i w = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)weights));
    const __m256i c = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)codes));
    __m256i total = _mm256_setzero_si256();
    for (int32_t s = 0; s < steps * ROUNDS; s += NARROW) {
        __m256i sums[CHAINS];
        EACH_CHAIN sums[i] = _mm256_setzero_si256();
        for (int r = 0; r < NARROW; r++) {
            EACH_CHAIN {
                __m256i product;
                __asm__ volatile("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
                                 : "+x"(sums[i]), "=&x"(product)
                                 : "x"(w), "x"(c));
            }
        }
        EACH_CHAIN
            total = _mm256_add_epi32(total, _mm256_madd_epi16(sums[i], _mm256_set1_epi16(1)));
    }
    return lanes(total);
}
#endif

#elif defined(__aarch64__) && !defined(LT_PLAIN)
#include <arm_neon.h>

enum { CHAINS = 12, ROUNDS = STEP / (CHAINS * 16) };

static uint32_t products(const uint8_t *weights, const int8_t *codes, int32_t steps) {
    int8x16_t w = vreinterpretq_s8_u8(vld1q_u8(weights)); /* 0..2: signed or not */
    const int8x16_t c = vld1q_s8(codes);
    int32x4_t total = vdupq_n_s32(0);
#ifdef __ARM_FEATURE_DOTPROD
    int32x4_t sums[CHAINS];
    EACH_CHAIN sums[i] = total;
    for (int32_t s = 0; s < steps * ROUNDS; s++) {
        EACH_CHAIN {
            __asm__ volatile("" : "+w"(w));
            sums[i] = vdotq_s32(sums[i], w, c);
        }
    }
    EACH_CHAIN total = vaddq_s32(total, sums[i]);
#else
    for (int32_t s = 0; s < steps * ROUNDS; s += NARROW) {
        int16x8_t low[CHAINS], high[CHAINS];
        EACH_CHAIN low[i] = high[i] = vdupq_n_s16(0);
        for (int r = 0; r < NARROW; r++) {
            EACH_CHAIN {
                __asm__ volatile("" : "+w"(w));
                low[i] = vmlal_s8(low[i], vget_low_s8(w), vget_low_s8(c));
                high[i] = vmlal_high_s8(high[i], w, c);
            }
        }
        EACH_CHAIN total = vpadalq_s16(vpadalq_s16(total, low[i]), high[i]);
    }
#endif
    return (uint32_t)vaddvq_s32(total);
}

#else

static uint32_t products(const uint8_t *weights, const int8_t *codes, int32_t steps) {
    int16_t w[STEP / 16], c[STEP / 16]; /* what compilers have a multiply-add for */
    for (int i = 0; i < STEP / 16; i++) {
        w[i] = weights[i % BYTES];
        c[i] = codes[i % BYTES];
    }
    uint32_t total = 0;
    for (int32_t s = 0; s < steps * 16; s++) {
        int32_t sum = 0;
        __asm__ volatile("" : : "r"(w), "r"(c) : "memory");
        for (int i = 0; i < STEP / 16; i++) sum += w[i] * c[i];
        total += (uint32_t)sum;
    }
    return total;
}

#endif

static int32_t units(const lt_op *op, const lt_step *step) {
    (void)step;
    return op->arg[0].cols;
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    int64_t *counts = lt_row(op, step, 0, 0), *sums = lt_row(op, step, 1, 0);
    const int32_t steps = op->dim[0] / NARROW * NARROW;
    for (int32_t part = begin; part < end; part++) {
        sums[part] = products(lt_row(op, step, 2, part), lt_row(op, step, 3, part), steps);
        counts[part] = (int64_t)steps * STEP;
    }
}

LT_KERNEL(peak, units, run);
