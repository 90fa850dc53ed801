/* t5: ternary weights at 1.6 bits, five to a byte; runtime/formats/t5.py says how they lie.
 *
 * A byte u holds a number f = u - 128, a fraction of 256 in balanced ternary: 3 f = 256 t + f', where t is its first
 * digit, -1, 0 or 1, and f' = 3 f wrapped to a byte holds the digits that remain. So nothing needs to be looked up:
 * a dot product with the digits is one with the bytes themselves,
 *
 *     256 sum(a t) = 3 sum(a f) - sum(a f')
 *
 * in integers that may wrap, because the result, sum(a t), is below 2^23 while K <= 65536. Where
 * a byte product is slow, the digit is (f > 42) - (f < -42) instead.
 *
 * linear_t5(y, codes, scale, sum, data, row_scale): y = (codes . t) * (scale * row_scale), codes as quantize makes
 * them. Codes beyond the matrix's columns are 0. */
#pragma once
#include "i8x64.h"

#define WHOLE 1
#define FEW 6

enum { COLUMNS = 20, STEPS = 5, BYTES = 64, PANEL = 32, MOST = 2, HALVES = 1 };

typedef struct {
    const uint8_t *data; /* [blocks][chunks][16 rows][4] */
    const float *row_scale;
    int32_t chunks;
} format;

static inline format format_open(const lt_op *op, const lt_step *step) {
    return (format){lt_row(op, step, 4, 0), lt_row(op, step, 5, 0), op->arg[4].cols / BYTES};
}

static inline const uint8_t *chunk_at(const format *f, int32_t block, int32_t chunk) {
    return f->data + ((int64_t)block * f->chunks + chunk) * BYTES;
}

#if WHOLE_BYTES
/* A chunk, with the codes from `first` on, of every token. */
LT_INLINE void chunk_dot(narrow now[][STEPS], narrow next[][STEPS], const uint8_t *data, const i8run codes[], int tokens,
                         int first, int chains, int64_t ahead) {
    const u8x64 bytes = u8load(data);
    u8x64 u = SIGNED_WEIGHTS ? u8signed(bytes) : bytes;
    __builtin_prefetch(data + ahead);
#pragma GCC unroll 5
    for (int d = 0; d < STEPS; d++) {
        const u8x64 times3 = u8times3(u);
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++) {
            const i8x4 a = i8step(codes[t], first + d);
            now[t][d % chains] = dot4(now[t][d % chains], u, a);
            next[t][d % chains] = dot4(next[t][d % chains], times3, a);
        }
        u = times3;
    }
}

/* Blocks side by side, with a few tokens. With unsigned bytes u = f + 128 both sums gain 128 times the codes' sum, so
 * their combination gains 256 times it: what row_finish takes off. */
LT_INLINE void streams_dot(const format *f, int32_t block, int streams, few x, i32x16 dots[]) {
    const int each = streams * x.n, chains = lt_min(CHAINS, each > 2 ? 2 : STEPS);
    const uint8_t *data = chunk_at(f, block, 0);
    const int64_t apart = f->chunks * (int64_t)BYTES;
    narrow now[STREAMS * AT_ONCE][STEPS], next[STREAMS * AT_ONCE][STEPS]; /* of the first block with each token, ... */
#pragma GCC unroll 8
    for (int s = 0; s < each; s++)
#pragma GCC unroll 5
        for (int d = 0; d < chains; d++) now[s][d] = next[s][d] = nzero();
    int32_t c = 0;
    for (int near_end = 0; near_end < 2; near_end++) { /* there, what comes next lies behind the last block */
        const int64_t ahead = PREFETCH + (near_end ? (streams - 1) * apart : 0);
        const int32_t stop = near_end ? f->chunks : f->chunks - PREFETCH / BYTES;
        for (; c + SPAN <= stop; c += SPAN) {
            i8run run[AT_ONCE];
#pragma GCC unroll 4
            for (int t = 0; t < x.n; t++) run[t] = few_load(few_from(x, c * COLUMNS), t, SPAN * STEPS);
#pragma GCC unroll 4
            for (int i = 0; i < SPAN; i++, data += BYTES)
#pragma GCC unroll 2
                for (int s = 0; s < streams; s++)
                    chunk_dot(now + s * x.n, next + s * x.n, data + s * apart, run, x.n, i * STEPS, chains, ahead);
        }
    }
    for (; SPAN > 1 && c < f->chunks; c++, data += BYTES) {
        i8run run[AT_ONCE];
#pragma GCC unroll 4
        for (int t = 0; t < x.n; t++) run[t] = few_load(few_from(x, c * COLUMNS), t, STEPS);
#pragma GCC unroll 2
        for (int s = 0; s < streams; s++)
            chunk_dot(now + s * x.n, next + s * x.n, data + s * apart, run, x.n, 0, chains, PREFETCH);
    }
#pragma GCC unroll 8
    for (int s = 0; s < each; s++) {
        i32x16 total = izero(), rest = izero();
#pragma GCC unroll 5
        for (int d = 0; d < chains; d++) {
            total = widen(total, now[s][d]);
            rest = widen(rest, next[s][d]);
        }
        dots[s] = ishr(isub(iadd(iadd(total, total), total), rest), 8);
    }
}
#else
LT_INLINE void streams_dot(const format *f, int32_t block, int streams, few x, i32x16 dots[]) {
    _Static_assert(AT_ONCE == 1, "one token");
    const uint8_t *data = chunk_at(f, block, 0);
    const int32_t safe = SAFE_STEPS(127 * MOST) / STEPS;
    i32x16 total = izero();
    for (int32_t c = 0; c < f->chunks;) {
        const int32_t stop = f->chunks - c > safe ? c + safe : f->chunks;
        narrow sums = nzero();
        for (; c < stop; c++, data += BYTES) {
            u8x64 fraction = u8fraction(u8load(data));
            __builtin_prefetch(data + PREFETCH);
#pragma GCC unroll 5
            for (int d = 0; d < STEPS; d++) {
                sums = dot4at(sums, u8trit(fraction), x.codes + c * COLUMNS + d * 4);
                fraction = u8times3(fraction);
            }
        }
        total = widen(total, sums);
    }
    (void)streams;
    *dots = total;
}
#endif

LT_INLINE void blocks_dot(const format *f, int32_t block, int32_t blocks, few x, i32x16 dots[]) {
    const int streams = x.n > 2 ? 1 : STREAMS;
#pragma GCC unroll 2
    for (int32_t b = 0; b < blocks; b += streams)
        streams_dot(f, block + b, lt_min(streams, blocks - b), x, dots + b * x.n);
}

LT_INLINE void decode(const format *f, int32_t p, const uint8_t *data, uint8_t to[][TILE_BLOCKS][64], int32_t b) {
    (void)f, (void)p;
    u8x64 fraction = u8fraction(u8load(data));
#pragma GCC unroll 5
    for (int d = 0; d < STEPS; d++) {
        u8store(to[d][b], u8trit(fraction));
        fraction = u8times3(fraction);
    }
}

LT_INLINE f32x16 row_finish(const format *f, i32x16 sums, int32_t block, float act_scale, float act_sum) {
    const i32x16 dot = isub(sums, iset1(SIGNED_WEIGHTS ? 0 : (int32_t)act_sum)); /* right in its lower 24 bits */
    return vmul(vfrom_i32(ishr(ishl(dot, 8), 8)), vmul(vset1(act_scale), vload(f->row_scale + (int64_t)block * 16)));
}

#include "linear.h"
