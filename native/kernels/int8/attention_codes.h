/* attention of integer caches, multiplied as integers.
 *
 * A query becomes whole numbers of up to KEY_MOST, with a scale for each group of columns; so do the weights of a tile,
 * times the scales of a group's values, of up to 2^13. Numbers beyond 127 are two digits in base 128: hi * 128 + lo, as
 * isplit() makes them. Digits are rows of int8 codes that meet the cache's bytes as they lie there; their sums are exact.
 *
 * A query of a 4-bit cache has 8 bits, as its own rounding is nothing beside the keys'. Weights have more: beside a
 * large one, many small ones would each be rounded to nothing. */
#include "i8x64.h"
#include "../kv_cache.h"

enum { ABREAST = TILE_TOKENS >= 8 ? 4 : TILE_TOKENS >= 4 ? 2 : 1 }; /* queries at a time, of two digits each */

#include "../attention_batch.h"

enum {
    WHOLE_MOST = 1 << 13,
    KEY_DIGITS = KV_MOST > 15 ? 2 : 1,
    KEY_MOST = KEY_DIGITS == 2 ? WHOLE_MOST : 127,
    SAFE = SAFE_STEPS(64 * KV_MOST),
    KEY_SAFE = KEY_DIGITS == 2 ? SAFE : SAFE_STEPS(127 * KV_MOST),
    HALF_STEPS = KV_GROUP / STEP / KV_HALVES,
    BLOCK_STEPS = LANES / STEP,
    GROUPS = WIDEST / KV_GROUP,
};

/* A head wider than WIDEST is the only one, and takes other queries' places. Rows are no power of two apart, which would
 * share few lines of L1. */
struct queries {
    _Alignas(64) int8_t digits[KEY_DIGITS][QUERIES][WIDEST + VECTOR];
    int32_t zero[QUERIES * GROUPS]; /* [queries][groups]: what KV_ZERO adds to their products */
    float unit[QUERIES * GROUPS];   /* of their whole numbers */
};

/* What the products of all digits are together, without the zeros of the codes. */
LT_INLINE f32x16 join(const i32x16 (*sums)[TILE_BLOCKS], int block, int digits, int32_t zero) {
    const i32x16 all = digits == 2 ? iadd(ishl(sums[0][block], 7), sums[1][block]) : sums[0][block];
    return vfrom_i32(isub(all, iset1(zero)));
}

static void take_query(queries *q, int32_t j, const float *from, int32_t n, int32_t columns) {
    const int32_t groups = kv_groups(columns);
    for (int32_t g = 0, c = 0; g < groups; g++, c += KV_GROUP) {
        f32x16 x[2];
        for (int i = 0; i < 2; i++) {
            const int32_t left = n - c - i * 16;
            x[i] = left >= 16 ? vload(from + c + i * 16) : left > 0 ? vloadn(from + c + i * 16, left) : vset1(0);
        }
        const float most = vhmax(vmax(vabs(x[0]), vabs(x[1]))), by = most > 1e-30f ? KEY_MOST / most : 0;
        const i32x16 whole[4] = {vto_i32(vmul(x[0], vset1(by))), vto_i32(vmul(x[1], vset1(by))), izero(), izero()};
        int8_t hi[64], lo[64];
        if (KEY_DIGITS == 2) {
            isplit(hi, lo, whole);
            memcpy(q->digits[KEY_DIGITS - 1][j] + c, lo, KV_GROUP);
        } else istore_i8(hi, whole);
        memcpy(q->digits[0][j] + c, hi, KV_GROUP);
        q->zero[j * groups + g] = KV_ZERO * (int32_t)vsum(vfrom_i32(iadd(whole[0], whole[1])));
        q->unit[j * groups + g] = most / KEY_MOST;
    }
}

/* Sums of `rows` rows of digits times the codes of a tile's blocks, which come step by step; narrow ones are put by
 * before they could overflow. */
typedef struct {
    narrow some[TILE_TOKENS][TILE_BLOCKS];
    i32x16 all[TILE_TOKENS][TILE_BLOCKS];
} products;

LT_INLINE void begin_products(products *s, int rows) {
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int b = 0; b < TILE_BLOCKS; b++) {
            s->some[r][b] = nzero();
            s->all[r][b] = izero();
        }
}

LT_INLINE void put_by(products *s, int rows, int last) {
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int b = 0; b < TILE_BLOCKS; b++) {
            s->all[r][b] = widen(s->all[r][b], s->some[r][b]);
            if (!last) s->some[r][b] = nzero();
        }
}

/* The n-th step. A query's digits lie `next` apart, queries' `stride`. */
LT_INLINE void add_step(products *s, const u8x64 w[TILE_BLOCKS], const int8_t *from, int stride, int next, int queries,
                        int digits, int n) {
#pragma GCC unroll 12
    for (int r = 0; r < queries * digits; r++) {
        const int8_t *step = from + r / digits * stride + r % digits * next;
#pragma GCC unroll 2
        for (int b = 0; b < TILE_BLOCKS; b++) s->some[r][b] = dot4at(s->some[r][b], w[b], step);
    }
    const int32_t safe = digits == KEY_DIGITS ? KEY_SAFE : SAFE; /* one and the same where keys have two digits */
    if (safe < INT32_MAX && (n + 1) % safe == 0) put_by(s, queries * digits, 0);
}

/* Memory is asked for evenly, or requests would wait for each other: of a tile's values the first SOON of four lines while
 * its keys are met, the others while digits are made, and the next keys while values are. */
enum { SOON = 3 };

/* score[j][lane] = q_j . k, for the blocks of a tile. Asks for values, the first of them at `ahead`. */
LT_INLINE void score_blocks(float (*score)[TILE], const queries *q, int32_t j, const kv_head *cache,
                            const int64_t at[TILE_BLOCKS], int32_t columns, const uint8_t *ahead, int queries) {
    const int32_t groups = kv_groups(columns), rows = KEY_DIGITS * queries;
    const int8_t *digits = q->digits[0][j];
    const int64_t values = cache->values.codes - cache->keys.codes;
    const uint8_t *k[TILE_BLOCKS];
    const uint16_t *scales[TILE_BLOCKS];
    f32x16 total[ABREAST][TILE_BLOCKS];
    for (int b = 0; b < TILE_BLOCKS; b++) {
        k[b] = cache->keys.codes + at[b] * kv_row_bytes(columns);
        scales[b] = kv_scales(&cache->keys, at[b], 0, columns);
        for (int i = 0; i < queries; i++) total[i][b] = vset1(0);
    }
    for (int32_t g = 0; g < groups; g++, digits += KV_GROUP) {
        products s;
        begin_products(&s, rows);
#pragma GCC unroll 4
        for (int i = 0; i < HALF_STEPS; i++) {
            u8x64 codes[TILE_BLOCKS], w[TILE_BLOCKS];
            for (int b = 0; b < TILE_BLOCKS; b++) {
                codes[b] = u8load(k[b]);
                k[b] += VECTOR;
                if ((i * TILE_BLOCKS + b) % 4 >= SOON) continue;
                __builtin_prefetch(ahead);
                ahead += VECTOR;
            }
            for (int h = 0; h < KV_HALVES; h++) {
                for (int b = 0; b < TILE_BLOCKS; b++) w[b] = kv_half(codes[b], h);
                add_step(&s, w, digits + (h * HALF_STEPS + i) * STEP, sizeof q->digits[0][0], sizeof q->digits[0], queries,
                         KEY_DIGITS, i * KV_HALVES + h);
            }
        }
        put_by(&s, rows, 1);
        for (int b = 0; b < TILE_BLOCKS; b++) {
            const f32x16 scale = vload_f16(scales[b] + g * LANES);
            __builtin_prefetch((const uint8_t *)(scales[b] + g * LANES) + values);
            for (int i = 0; i < queries; i++) {
                const int32_t group = (j + i) * groups + g;
                const f32x16 dot = join(s.all + KEY_DIGITS * i, b, KEY_DIGITS, q->zero[group]);
                total[i][b] = vfma(vmul(dot, vset1(q->unit[group])), scale, total[i][b]);
            }
        }
    }
    for (int i = 0; i < queries; i++)
        for (int b = 0; b < TILE_BLOCKS; b++) vstore(score[i] + b * LANES, total[i][b]);
}

static void score_tile(const batch *s, scores score, const kv_head *cache, int64_t at, int32_t columns) {
    const int32_t blocks = lt_ceil_div(s->seen[s->count - 1], LANES);
    const int64_t row_bytes = kv_row_bytes(columns);
    for (int32_t block = 0; block < blocks; block += TILE_BLOCKS) {
        const uint8_t *ahead = cache->values.codes + (at + block * LANES * SOON / 4) * row_bytes;
        int64_t position[TILE_BLOCKS];
        for (int32_t b = 0; b < TILE_BLOCKS; b++) /* the last block fills the tile */
            position[b] = at + (int64_t)lt_min(block + b, blocks - 1) * LANES;
        for (int32_t j = 0, m; j < s->count; j += m) {
            float(*to)[TILE] = (float(*)[TILE])(score[j] + block * LANES);
            m = abreast(s->count - j);
#define SCORE(queries) score_blocks(to, s->q, j, cache, position, columns, ahead, queries)
            AT_A_TIME(m, SCORE)
        }
    }
}

/* Scales of a group's values, divided by the largest of those seen, which is returned; 0 for the unseen. Asks for those
 * `next` further. */
static float take_scales(f32x16 scale[TILE / 16], const uint16_t *from, int32_t stride, int32_t seen, int64_t next) {
    f32x16 largest = vset1(0);
    for (int b = 0; b < TILE / LANES; b++) {
        const int32_t left = seen - b * LANES;
        __builtin_prefetch(from + next + b * stride);
        if (seen == TILE) scale[b] = vload_f16(from + b * stride);
        else scale[b] = left > 0 ? vloadn_f16(from + b * stride, lt_min(left, LANES)) : vset1(0);
        largest = vmax(largest, vabs(scale[b]));
    }
    const float most = vhmax(largest), by = most > 0 ? 1 / most : 0;
    for (int b = 0; b < TILE / LANES; b++) scale[b] = vmul(scale[b], vset1(by));
    return most;
}

/* Some queries' weights times the scales of a group's values, as digits. */
typedef struct {
    int8_t digits[QUERIES][2][TILE];
    int32_t zero[QUERIES];
    float unit[QUERIES];
} blend;

enum { LATER = KV_GROUP / KV_HALVES * (4 - SOON) / STEP / FEW }; /* lines asked for with 16 weights of a query */

/* A query's weights, `by` times as large, times the scales of some groups side by side, as digits. Asks for memory
 * meanwhile. */
LT_INLINE void take_digits(blend *to, int32_t j, const float *weight, float by, f32x16 (*scale)[TILE / 16], int groups,
                           const uint8_t *ahead) {
    i32x16 sum[4];
    int32_t total[4];
    for (int g = 0; g < 4; g++) sum[g] = izero();
#pragma GCC unroll 2
    for (int t = 0; t < TILE / 16; t += 4) {
        i32x16 whole[4][4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const f32x16 w = vmul(vload(weight + (t + i) * 16), vset1(by));
            for (int n = 0; n < LATER; n++) __builtin_prefetch(ahead + ((t + i) * LATER + n) * VECTOR);
            for (int g = 0; g < groups; g++) {
                whole[g][i] = vto_i32(vmul(w, scale[g][t + i]));
                sum[g] = iadd(sum[g], whole[g][i]);
            }
        }
        for (int g = 0; g < groups; g++) isplit(to[g].digits[j][0] + t * 16, to[g].digits[j][1] + t * 16, whole[g]);
    }
    isums(total, sum);
    for (int g = 0; g < groups; g++) to[g].zero[j] = KV_ZERO * total[g];
}

/* By itself, or the compiler keeps dozens of addresses in memory. */
static __attribute__((noinline)) void take_digits4(blend *to, int32_t j, const float *weight, float by,
                                                   f32x16 (*scale)[TILE / 16], const uint8_t *ahead) {
    take_digits(to, j, weight, by, scale, 4, ahead);
}

/* y_j = y_j * keep[j] + unit[j] * (digits_j . v), for a group's columns and some blocks of positions. Asks for as much of
 * the memory ahead. */
LT_INLINE void blend_columns(float *const *y, int32_t column, const float *keep, const blend *with, int32_t j,
                             const uint8_t *v, int64_t stride, int32_t blocks, int queries, const uint8_t *ahead) {
    for (int p = 0; p < 2; p += TILE_BLOCKS) {
        products s;
        begin_products(&s, 2 * queries);
        const uint8_t *from = v;
        const int8_t *digits = with->digits[j][0];
        for (int32_t block = 0; block < blocks; block++) {
#pragma GCC unroll 4
            for (int i = 0; i < BLOCK_STEPS; i++, from += stride, digits += STEP) {
                u8x64 codes[TILE_BLOCKS], w[TILE_BLOCKS];
                for (int b = 0; b < TILE_BLOCKS; b++) {
                    codes[b] = KV_HALVES == 2 && b ? codes[0] : u8load(from + (p + b) / KV_HALVES * VECTOR);
                    w[b] = kv_half(codes[b], (p + b) % KV_HALVES);
                    if ((p + b) % KV_HALVES == 0) {
                        __builtin_prefetch(ahead);
                        ahead += VECTOR;
                    }
                }
                add_step(&s, w, digits, 2 * TILE, TILE, queries, 2, i);
            }
            if (SAFE < INT32_MAX) put_by(&s, 2 * queries, 0); /* steps are counted from here again */
        }
        put_by(&s, 2 * queries, 1);
        for (int i = 0; i < queries; i++)
            for (int b = 0; b < TILE_BLOCKS; b++) {
                float *to = y[i] + column + (p + b) * 16;
                const f32x16 dot = join(s.all + 2 * i, b, 2, with->zero[j + i]);
                vstore(to, vfma(dot, vset1(with->unit[j + i]), vmul(vload(to), vset1(keep[i]))));
            }
    }
}

static void blend_tile(const batch *s, const slab *of, scores weight, const float *keep, int64_t at) {
    _Alignas(64) blend with[GROUPS];
    f32x16 scale[GROUPS][TILE / 16];
    float most[GROUPS];
    int32_t begin = 0;
    while (s->seen[begin] == 0) begin++;

    const kv_codes *values = &of->cache->values;
    const int64_t row_bytes = kv_row_bytes(of->columns);
    const int32_t groups = of->vectors / 2, stride = kv_groups(of->columns) * LANES;
    const uint16_t *scales = kv_scales(values, at, of->first, of->columns);
    const uint8_t *rest = values->codes + (at + TILE * SOON / 4) * row_bytes;
    const uint8_t *ahead = of->cache->keys.codes + (at + TILE) * row_bytes;
    const int64_t scales_ahead = of->cache->keys.scales - values->scales + TILE / LANES * stride;
    for (int32_t j = begin; j < s->count; j++) {
        if (j == begin || s->seen[j] != s->seen[j - 1])
            for (int32_t g = 0; g < groups; g++)
                most[g] = take_scales(scale[g], scales + g * LANES, stride, s->seen[j], scales_ahead);
        /* Next to the largest weight of all, which is 1, a tile of those below 1e-30 is nothing. */
        const float unit = s->top[j] / WHOLE_MOST, by = s->top[j] > 1e-30f ? 1 / unit : 0;
        for (int32_t g = 0, m; g < groups; g += m) {
            m = groups - g >= 4 ? 4 : 1;
            const uint8_t *later = rest + (g / 4 * FEW + lt_min(j, FEW - 1)) * (TILE / 16 * LATER * VECTOR);
            if (m == 4) take_digits4(with + g, j, weight[j], by, scale + g, later);
            else take_digits(with + g, j, weight[j], by, scale + g, 1, later);
        }
        for (int32_t g = 0; g < groups; g++) with[g].unit[j] = unit * most[g];
    }
    const int32_t blocks = lt_ceil_div(s->seen[s->count - 1], LANES);
    const int64_t next = KV_GROUP / KV_HALVES * STEP; /* bytes */
    const uint8_t *v = values->codes + at * row_bytes + (int64_t)of->first / KV_HALVES * STEP;
    for (int32_t g = 0; g < groups; g++, v += next) {
        for (int32_t j = begin, m; j < s->count; j += m) {
            m = abreast(s->count - j);
#define BLEND(queries)                                                                                          \
    blend_columns(s->y + j, g * KV_GROUP, keep + j, &with[g], j, v, row_bytes * STEP, blocks, queries,    \
                  ahead + g * (TILE * KV_GROUP / KV_HALVES))
            AT_A_TIME(m, BLEND)
        }
    }
}

#include "../attention.h"
