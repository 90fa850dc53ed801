/* linear_c<BITS>(y, codes, act_scale, act_sum, data, scale, table, digits; group): codes of a codebook of 8 or 16
 * values, as NF4, MXFP4 and BitMoD have; runtime/formats/_codebook.py says how they lie. Include after defining BITS.
 *
 * A value is a sum of digits, each a byte looked up in a table: value = sum over d of weight_d * (table_d[code] - zero_d).
 * A digit of a group adds (act_scale * scale * weight) * (codes . bytes - zero * act_sum) to the row's float. If groups
 * have a value of their own, the last digit is 1 for its code, and its weight is that value.
 *
 * With NESTED, which gives the columns of a group, the last arguments are scale, unit, table, and a group's scale is a
 * number of 8 bits that LOAD_SCALE reads, times a float of its super-block: _nested_codebook.py. Values are whole: their
 * first digit counts from 64, and the second, if there is one, has the lower seven bits. */
#include "planes.h"

#define WHOLE 0
#ifndef NESTED
#define NESTED 0
#endif

/* Of a chunk of 16 rows: steps of four columns. */
enum { COLUMNS = NESTED ? NESTED : 32, STEPS = COLUMNS / 4, BYTES = BITS * COLUMNS * 2 };
enum { PANEL = NESTED ? 256 / COLUMNS : 4, MOST = 127, HALVES = 1 };

typedef struct {
    f32x16 scale;
    float zero;
} grid;

#if NESTED
#define GROUP 1
#define HALF_TILES (TILE_TOKENS == 12)

typedef struct {
    const uint8_t *data;  /* [blocks][chunks][BYTES] */
    const uint8_t *scale; /* 8 bits [blocks][chunks][16] */
    const float *unit;    /* f32 [blocks][super-blocks][16] */
    const uint8_t *table; /* [planes][16], 0..127 */
    int32_t chunks, supers;
    int32_t shift; /* a super-block has 2^shift chunks */
    int32_t planes;
} format;

static inline format format_open(const lt_op *op, const lt_step *step) {
    format f = {.data = lt_row(op, step, 4, 0),
                .scale = lt_row(op, step, 5, 0),
                .unit = lt_row(op, step, 6, 0),
                .table = lt_row(op, step, 7, 0),
                .chunks = op->arg[4].cols / BYTES,
                .supers = op->arg[6].cols / 16,
                .planes = op->arg[7].cols / 16};
    while (f.supers << f.shift < f.chunks) f.shift++;
    return f;
}

static inline grid grid_at(const format *f, int32_t block, int32_t group, int32_t plane) {
    const uint8_t *at = f->scale + ((int64_t)block * f->chunks + group) * 16;
    const float *unit = f->unit + ((int64_t)block * f->supers + (group >> f->shift)) * 16;
    __builtin_prefetch(at + SCALES_AHEAD);
    const f32x16 scale = vmul(vload(unit), LOAD_SCALE(at));
    return (grid){plane < f->planes - 1 ? vmul(scale, vset1(128)) : scale, plane ? 0 : 64};
}
#else
typedef struct {
    const uint8_t *data;   /* [blocks][chunks][4 vectors][16 rows][4] */
    const uint16_t *scale; /* f16 [blocks][groups][grids][16] */
    const uint8_t *table;  /* [planes][16], 0..127 */
    const float *digits;   /* [planes][weight, zero] */
    int32_t chunks, groups;
    int32_t grids; /* 2: behind a group's scales lie its own values */
    int32_t group, planes;
} format;

static inline format format_open(const lt_op *op, const lt_step *step) {
    const int32_t groups = op->arg[2].cols;
    return (format){.data = lt_row(op, step, 4, 0),
                    .scale = lt_row(op, step, 5, 0),
                    .table = lt_row(op, step, 6, 0),
                    .digits = lt_row(op, step, 7, 0),
                    .chunks = op->arg[4].cols / BYTES,
                    .groups = groups,
                    .grids = op->arg[5].cols / 16 / groups,
                    .group = op->dim[0] / COLUMNS,
                    .planes = op->arg[6].cols / 16};
}

static inline grid grid_at(const format *f, int32_t block, int32_t group, int32_t plane) {
    const uint16_t *at = f->scale + ((int64_t)block * f->groups + group) * f->grids * 16;
    __builtin_prefetch(at + SCALES_AHEAD / 2);
    const f32x16 weight = f->grids == 2 && plane == f->planes - 1 ? vload_f16(at + 16) : vset1(f->digits[2 * plane]);
    return (grid){vmul(vload_f16(at), weight), f->digits[2 * plane + 1]};
}
#define GROUP f->group
#endif

static inline const uint8_t *group_at(const format *f, int32_t block, int32_t group, int32_t plane, int32_t chunks) {
    (void)plane, (void)chunks;
    return f->data + ((int64_t)block * f->chunks + group * GROUP) * BYTES;
}

LT_INLINE f32x16 add_group(f32x16 y, i32x16 sums, grid w, float act_scale, float act_sum) {
    const f32x16 dot = vsub(vfrom_i32(sums), vset1(w.zero * act_sum));
    return vfma(vmul(vset1(act_scale), w.scale), dot, y);
}

LT_INLINE u8x64 codes_of_step(const uint8_t *data, int step) {
    if (BITS == 4) return plane_step(data, 4, step);
    return u8or(plane_step(data, 2, step), u8up(plane_step(data + 128, 1, step), 2));
}

/* Of one or two blocks, `apart`. */
LT_INLINE void codes_dot(const format *f, int32_t p, const uint8_t *data, int64_t apart, int blocks, few x,
                         int32_t chunks, int64_t ahead, i32x16 dots[]) {
    const u8x16 table = u8table(f->table + p * 16);
    const int32_t safe = SAFE_STEPS(127 * MOST);
    narrow sums[AT_ONCE][2];
#pragma GCC unroll 4
    for (int i = 0; i < blocks * x.n; i++) {
        dots[i] = izero();
        sums[i][0] = sums[i][1] = nzero();
    }
    for (int32_t c = 0; c < chunks; c++, data += BYTES, x = few_from(x, COLUMNS)) {
        i8run run[AT_ONCE];
#pragma GCC unroll 4
        for (int t = 0; t < x.n; t++) run[t] = few_load(x, t, STEPS);
        for (int b = 0; b < blocks; b++)
            for (int v = 0; v < BYTES; v += VECTOR) __builtin_prefetch(data + b * apart + v + ahead);
#pragma GCC unroll 8
        for (int s = 0; s < STEPS; s++)
#pragma GCC unroll 2
            for (int b = 0; b < blocks; b++) {
                const u8x64 values = u8lookup(table, codes_of_step(data + b * apart, s));
#pragma GCC unroll 4
                for (int t = 0, i = b * x.n; t < x.n; t++, i++) {
                    sums[i][s % 2] = dot4of(sums[i][s % 2], values, run[t], s);
                    if (safe == INT32_MAX) continue;
                    dots[i] = widen(dots[i], sums[i][s % 2]);
                    sums[i][s % 2] = nzero();
                }
            }
    }
#pragma GCC unroll 4
    for (int i = 0; i < blocks * x.n; i++) dots[i] = widen(widen(dots[i], sums[i][0]), sums[i][1]);
}

LT_INLINE void chunks_dot(const format *f, int32_t p, const uint8_t *data, few x, int32_t chunks, int64_t ahead,
                          i32x16 dots[]) {
    codes_dot(f, p, data, 0, 1, x, chunks, ahead, dots);
}

#define PAIRS (STREAMS == 2)
LT_INLINE void pair_dot(const format *f, int32_t p, const uint8_t *data, int64_t apart, few x, int32_t chunks,
                        int64_t ahead, i32x16 dots[]) {
    codes_dot(f, p, data, apart, 2, x, chunks, ahead, dots);
}

LT_INLINE void decode(const format *f, int32_t p, const uint8_t *data, uint8_t to[][TILE_BLOCKS][64], int32_t b) {
    const u8x16 table = u8table(f->table + p * 16);
#pragma GCC unroll 8
    for (int s = 0; s < STEPS; s++) u8store(to[s][b], u8lookup(table, codes_of_step(data, s)));
}

#include "linear.h"
