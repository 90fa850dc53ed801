/* attention of integer caches, multiplied as integers.
 *
 * A query becomes whole numbers of up to 2^13 with one scale, and each of them two digits in base 128: hi * 128 + lo,
 * both in -64..64. So do the weights of a tile, times the scales of a group's values. Digits are rows of int8 codes that
 * meet the cache's bytes in tiles (tile.h); their sums are exact. */
#include "tile.h"
#include "../kv_cache.h"

enum { ABREAST = TILE_TOKENS >= 8 ? 4 : TILE_TOKENS >= 4 ? 2 : 1 }; /* queries at a time, of two digits each */

#include "../attention_batch.h"

enum {
    WHOLE_MOST = 1 << 13,
    SAFE = SAFE_STEPS(64 * KV_MOST),
    GROUP_STEPS = KV_GROUP / STEP,
    HALF_STEPS = GROUP_STEPS / KV_HALVES,
    TILE_STEPS = TILE / STEP,
};

/* Rows of digits lie columns + VECTOR apart: no power of two, which would share few lines of L1. A head wider than
 * WIDEST is the only one. */
struct queries {
    _Alignas(64) int8_t digits[QUERIES * 2 * (WIDEST + VECTOR)];
    int32_t zero[QUERIES * (WIDEST / KV_GROUP)]; /* [queries][groups]: what KV_ZERO adds to their products */
};

/* Sixteen numbers, rounded, as digits; returns them rounded. */
static inline f32x16 split(f32x16 x, int8_t *hi, int8_t *lo) {
    const f32x16 whole = vrint(x), high = vrint(vmul(whole, vset1(1.0f / 128)));
    vstore_i8(hi, high);
    vstore_i8(lo, vfnma(high, vset1(128), whole));
    return whole;
}

/* What the products of both digits are together, without the zeros of the codes. */
LT_INLINE f32x16 join(i32x16 hi, i32x16 lo, int32_t zero) {
    return vfrom_i32(isub(iadd(ishl(hi, 7), lo), iset1(zero)));
}

static float take_query(queries *q, int32_t j, const float *from, int32_t n, int32_t columns) {
    const int32_t stride = columns + VECTOR, groups = kv_groups(columns);
    int8_t *digits = q->digits + (int64_t)j * 2 * stride;
    f32x16 largest = vset1(0);
    for (int32_t c = 0; c < n; c += 16)
        largest = vmax(largest, vabs(n - c < 16 ? vloadn(from + c, n - c) : vload(from + c)));
    const float most = vhmax(largest), by = most > 1e-30f ? WHOLE_MOST / most : 1; /* or all become 0 */
    for (int32_t g = 0; g < groups; g++) {
        f32x16 sum = vset1(0);
        for (int32_t c = g * KV_GROUP; c < (g + 1) * KV_GROUP; c += 16) {
            const f32x16 x = n - c >= 16 ? vload(from + c) : n > c ? vloadn(from + c, n - c) : vset1(0);
            sum = vadd(sum, split(vmul(x, vset1(by)), digits + c, digits + stride + c));
        }
        q->zero[j * groups + g] = KV_ZERO * (int32_t)vsum(sum);
    }
    return 1 / by;
}

typedef uint8_t key_panel[WIDEST / STEP][TILE_BLOCKS][VECTOR];

/* Some columns, from `first` on, of the keys of a tile's blocks. Asks for what comes next: these positions' values, and
 * the next blocks' keys. */
static void take_keys(key_panel panel, const kv_head *cache, const int64_t at[TILE_BLOCKS], int32_t columns, int32_t first,
                      int32_t groups, int few) {
    const int64_t row_bytes = kv_row_bytes(columns);
    for (int32_t b = 0; b < TILE_BLOCKS; b++) {
        const int64_t from = at[b] * row_bytes + (int64_t)first / KV_HALVES * LANES;
        const uint8_t *k = cache->keys.codes + from, *v = cache->values.codes + from;
        for (int32_t g = 0; g < groups; g++)
            for (int32_t i = 0; i < HALF_STEPS; i++, k += VECTOR, v += VECTOR) {
                const u8x64 codes = u8load(k);
                if (few) {
                    __builtin_prefetch(v);
                    __builtin_prefetch(k + TILE_BLOCKS * LANES * row_bytes);
                }
                for (int h = 0; h < KV_HALVES; h++)
                    u8store(panel[g * GROUP_STEPS + h * HALF_STEPS + i][b], kv_half(codes, h));
            }
    }
    finish_panel(panel, groups * GROUP_STEPS);
}

/* score[j][lane] += q_j . k, for these columns and the blocks of a tile. */
LT_INLINE void score_columns(float (*score)[TILE], const queries *q, int32_t j, const key_panel panel,
                             const uint16_t *const scales[TILE_BLOCKS], int32_t columns, int32_t first, int32_t groups,
                             int queries) {
    const int32_t stride = columns + VECTOR;
    const int8_t *digits = q->digits + (int64_t)j * 2 * stride + first;
    const int32_t *zero = q->zero + j * kv_groups(columns) + first / KV_GROUP;
    f32x16 total[ABREAST][TILE_BLOCKS];
    for (int i = 0; i < queries; i++)
        for (int b = 0; b < TILE_BLOCKS; b++) total[i][b] = first ? vload(score[i] + b * LANES) : vset1(0);
    for (int32_t g = 0; g < groups; g++) {
        i32x16 sums[TILE_TOKENS][TILE_BLOCKS];
        tile(panel + g * GROUP_STEPS, GROUP_STEPS, digits + g * KV_GROUP, stride, 2 * queries, SAFE, sums);
        for (int b = 0; b < TILE_BLOCKS; b++) {
            const f32x16 scale = vload_f16(scales[b] + g * LANES);
            for (int i = 0; i < queries; i++) {
                const f32x16 dot = join(sums[2 * i][b], sums[2 * i + 1][b], zero[i * kv_groups(columns) + g]);
                total[i][b] = vfma(dot, scale, total[i][b]);
            }
        }
    }
    for (int i = 0; i < queries; i++)
        for (int b = 0; b < TILE_BLOCKS; b++) vstore(score[i] + b * LANES, total[i][b]);
}

static void score_tile(const batch *s, scores score, const kv_head *cache, int64_t at, int32_t columns) {
    _Alignas(64) key_panel panel;
    const int32_t blocks = lt_ceil_div(s->seen[s->count - 1], LANES);
    for (int32_t block = 0; block < blocks; block += TILE_BLOCKS)
        for (int32_t first = 0; first < columns; first += WIDEST) {
            const int32_t groups = lt_min(WIDEST, columns - first) / KV_GROUP;
            int64_t position[TILE_BLOCKS];
            const uint16_t *scales[TILE_BLOCKS];
            for (int32_t b = 0; b < TILE_BLOCKS; b++) { /* the last block fills the tile */
                position[b] = at + (int64_t)lt_min(block + b, blocks - 1) * LANES;
                scales[b] = kv_scales(&cache->keys, position[b], first, columns);
            }
            take_keys(panel, cache, position, columns, first, groups, s->count <= FEW);
            for (int32_t j = 0, m; j < s->count; j += m) {
                float(*to)[TILE] = (float(*)[TILE])(score[j] + block * LANES);
                m = abreast(s->count - j);
#define SCORE(queries) score_columns(to, s->q, j, panel, scales, columns, first, groups, queries)
                AT_A_TIME(m, SCORE)
            }
        }
}

typedef uint8_t value_panel[2 / TILE_BLOCKS][TILE_STEPS][TILE_BLOCKS][VECTOR];

/* A group's columns of some positions' values. */
static void take_values(value_panel panel, const uint8_t *v, int64_t stride, int32_t steps) {
    for (int32_t i = 0; i < steps; i++, v += stride)
        for (int block = 0; block < 2; block++) {
            const u8x64 codes = u8load(v + block / KV_HALVES * VECTOR);
            u8store(panel[block / TILE_BLOCKS][i][block % TILE_BLOCKS], kv_half(codes, block % KV_HALVES));
        }
    for (int p = 0; p < 2 / TILE_BLOCKS; p++) finish_panel(panel[p], steps);
}

/* Scales of a group's values, divided by the largest of those seen, which is returned; 0 for the unseen. */
static float take_scales(float scale[TILE], const kv_codes *values, int64_t at, int32_t column, int32_t columns,
                         int32_t seen) {
    f32x16 largest = vset1(0);
    for (int32_t t = 0; t < seen; t += LANES) {
        const uint16_t *from = kv_scales(values, at + t, column, columns);
        const f32x16 some = seen - t < LANES ? vloadn_f16(from, seen - t) : vload_f16(from);
        vstore(scale + t, some);
        largest = vmax(largest, vabs(some));
    }
    const float most = vhmax(largest), by = most > 0 ? 1 / most : 0;
    for (int32_t t = 0; t < TILE; t += LANES) vstore(scale + t, t < seen ? vmul(vload(scale + t), vset1(by)) : vset1(0));
    return most;
}

/* Weights of the positions seen to whole numbers, in place, and 0 for the unseen; returns the unit. Next to the largest
 * weight of all, which is 1, those below 1e-30 are nothing. */
static float take_weights(float weight[TILE], int32_t seen) {
    f32x16 largest = vset1(0);
    for (int32_t t = seen; t < TILE; t++) weight[t] = 0;
    for (int32_t t = 0; t < TILE; t += 16) largest = vmax(largest, vload(weight + t));
    const float most = vhmax(largest), by = most > 1e-30f ? WHOLE_MOST / most : 0;
    for (int32_t t = 0; t < TILE; t += 16) vstore(weight + t, vmul(vload(weight + t), vset1(by)));
    return most / WHOLE_MOST;
}

/* y_j = y_j * keep[j] + unit[j] * (digits_j . v), for the columns of a tile's blocks. */
LT_INLINE void blend_columns(float *const *y, int32_t at, const float *keep, const float *unit, const int32_t *zero,
                             const int8_t *digits, const uint8_t panel[][TILE_BLOCKS][VECTOR], int32_t steps,
                             int queries) {
    i32x16 sums[TILE_TOKENS][TILE_BLOCKS];
    tile(panel, steps, digits, TILE, 2 * queries, SAFE, sums);
    for (int i = 0; i < queries; i++)
        for (int b = 0; b < TILE_BLOCKS; b++) {
            float *to = y[i] + at + b * 16;
            const f32x16 dot = join(sums[2 * i][b], sums[2 * i + 1][b], zero[i]);
            vstore(to, vfma(dot, vset1(unit[i]), vmul(vload(to), vset1(keep[i]))));
        }
}

static void blend_tile(const batch *s, const slab *of, scores weight, const float *keep, int64_t at) {
    _Alignas(64) value_panel panel;
    _Alignas(64) int8_t digits[QUERIES][2][TILE];
    _Alignas(64) float scale[TILE];
    float weight_unit[QUERIES], unit[QUERIES];
    int32_t zero[QUERIES], begin = 0;
    while (s->seen[begin] == 0) begin++;
    for (int32_t j = begin; j < s->count; j++) weight_unit[j] = take_weights(weight[j], s->seen[j]);

    const kv_codes *values = &of->cache->values;
    const int64_t row_bytes = kv_row_bytes(of->columns);
    const int32_t steps = lt_ceil_div(s->seen[s->count - 1], LANES) * (LANES / STEP);
    for (int32_t i = 0; i < of->vectors; i += 2) {
        const int32_t column = of->first + i * 16;
        float most = 0;
        for (int32_t j = begin; j < s->count; j++) {
            if (j == begin || s->seen[j] != s->seen[j - 1])
                most = take_scales(scale, values, at, column, of->columns, s->seen[j]);
            f32x16 sum = vset1(0);
            for (int32_t t = 0; t < steps * STEP; t += 16)
                sum = vadd(sum, split(vmul(vload(weight[j] + t), vload(scale + t)), digits[j][0] + t, digits[j][1] + t));
            zero[j] = KV_ZERO * (int32_t)vsum(sum);
            unit[j] = weight_unit[j] * most;
        }
        take_values(panel, values->codes + at * row_bytes + (int64_t)column / KV_HALVES * STEP, row_bytes * STEP, steps);
        for (int32_t p = 0; p < 2 / TILE_BLOCKS; p++)
            for (int32_t j = begin, m; j < s->count; j += m) {
                m = abreast(s->count - j);
#define BLEND(queries)                                                                                          \
    blend_columns(s->y + j, (i + p * TILE_BLOCKS) * 16, keep + j, unit + j, zero + j, digits[j][0], panel[p], steps, queries)
                AT_A_TIME(m, BLEND)
            }
    }
}

#include "../attention.h"
