/* linear_bcq(y, codes, act_scale, act_sum, data, scale, zero, offset; group): binary planes with scales of their own
 * (LUT-GEMM: Park et al. 2022; DB-LLM: Chen et al. 2024); runtime/formats/_planes.py says how they lie.
 *
 * A plane of a group adds (act_scale * scale) * (codes . bits - zero * act_sum) to the row's float, and the group's
 * first plane act_scale * offset * act_sum. */
#include "planes.h"

#define WHOLE 0

enum { COLUMNS = 32, STEPS = 8, BYTES = 64, PANEL = 4, MOST = 1, HALVES = 1 };

typedef struct {
    const uint8_t *data;    /* [blocks][groups][planes][chunks][16 rows][4] */
    const uint16_t *scale;  /* f16 [blocks][groups][planes][16] */
    const uint16_t *offset; /* f16 [blocks][groups][16], or NULL */
    float zero;
    int32_t chunks, groups;
    int32_t group, planes;
} format;

static inline format format_open(const lt_op *op, const lt_step *step) {
    format f = {.data = lt_row(op, step, 4, 0), .scale = lt_row(op, step, 5, 0)};
    f.zero = *(const float *)lt_row(op, step, 6, 0);
    f.groups = op->arg[2].cols;
    f.planes = op->arg[5].cols / 16 / f.groups;
    f.chunks = op->arg[4].cols / BYTES / f.planes;
    f.group = op->dim[0] / COLUMNS;
    if (op->arg[7].cols > 1) f.offset = lt_row(op, step, 7, 0);
    return f;
}

static inline const uint8_t *group_at(const format *f, int32_t block, int32_t group, int32_t plane, int32_t chunks) {
    const int64_t before = ((int64_t)block * f->chunks + group * f->group) * f->planes;
    return f->data + (before + plane * chunks) * BYTES;
}

typedef struct {
    f32x16 scale, offset;
    float zero;
    int has_offset;
} grid;

static inline grid grid_at(const format *f, int32_t block, int32_t group, int32_t plane) {
    const int64_t at = (int64_t)block * f->groups + group;
    const uint16_t *scale = f->scale + (at * f->planes + plane) * 16;
    __builtin_prefetch(scale + SCALES_AHEAD / 2);
    const int has_offset = f->offset && plane == 0;
    return (grid){vload_f16(scale), has_offset ? vload_f16(f->offset + at * 16) : vset1(0), f->zero, has_offset};
}

LT_INLINE f32x16 add_group(f32x16 y, i32x16 sums, grid w, float act_scale, float act_sum) {
    const f32x16 dot = vsub(vfrom_i32(sums), vset1(w.zero * act_sum));
    if (w.has_offset) y = vfma(vset1(act_scale * act_sum), w.offset, y);
    return vfma(vmul(vset1(act_scale), w.scale), dot, y);
}

LT_INLINE void chunks_dot(const format *f, int32_t p, const uint8_t *data, few x, int32_t chunks, int64_t ahead,
                          i32x16 dots[]) {
    (void)f, (void)p;
    plane_dot(data, BYTES, 0, 1, x, chunks, ahead, 1, STEPS, dots);
}

#define PAIRS (STREAMS == 2)
LT_INLINE void pair_dot(const format *f, int32_t p, const uint8_t *data, int64_t apart, few x, int32_t chunks,
                        int64_t ahead, i32x16 dots[]) {
    (void)f, (void)p;
    plane_dot(data, BYTES, apart, 2, x, chunks, ahead, 1, STEPS, dots);
}

LT_INLINE void decode(const format *f, int32_t p, const uint8_t *data, uint8_t to[][TILE_BLOCKS][64], int32_t b) {
    (void)f, (void)p;
#pragma GCC unroll 8
    for (int s = 0; s < STEPS; s++) u8store(to[s][b], plane_step(data, 1, s));
}

#include "linear.h"
#include "lut.h"

LT_KERNEL(linear_bcq, linear_units, lut_run);
