/* linear for weights on uniform grids (../uniform.h). Include after defining BITS, WHOLE, perhaps NESTED and OFFSETS.
 *
 * A group of a row adds (act_scale * scale) * (codes . c - zero * act_sum) to the row's float, group after group: the
 * integers are exact, and the floats have one order everywhere. With WHOLE a row is one group. */
#pragma once
#include "../uniform.h"
#include "planes.h"

/* Where a product does not take 0..255, the halves of 8 bits make panels of their own. */
enum { PANEL = WHOLE ? 16 : 256 / COLUMNS, HALVES = BITS == 8 && (SIGNED_WEIGHTS || !WHOLE_BYTES) ? 2 : 1 };
enum { MOST = (1 << BITS / HALVES) - 1 };

#define PLANES 1
#define PAIRS (STREAMS == 2 && !WHOLE && !NESTED && (BITS == 1 || BITS == 3)) /* those that arithmetic binds most */
#if NESTED
#define GROUP 1
#endif
#if !WHOLE
#define HALF_TILES (TILE_TOKENS == 12 && GROUP * COLUMNS <= 32)
#endif

#define FEW (BITS == 3 || (SMALL && BITS == 4 && COLUMNS == 32) ? 4 : SMALL || HIGH ? 2 : FEW_TOKENS)

static inline format format_open(const lt_op *op, const lt_step *step) { return uniform_open(op, step, 4); }

/* One or two blocks, `apart`. */
LT_INLINE void planes_dot(const uint8_t *data, int64_t apart, int blocks, few x, int32_t chunks, int64_t ahead,
                          i32x16 dots[]) {
    plane_dot(data, BYTES, apart, blocks, x, chunks, ahead, LOW, STEPS, dots);
    if (HIGH == 0) return;
    i32x16 high[AT_ONCE];
    plane_dot(data + LOW_BYTES, BYTES, apart, blocks, x, chunks, ahead, HIGH ? HIGH : 1, STEPS, high);
#pragma GCC unroll 4
    for (int s = 0; s < blocks * x.n; s++) dots[s] = iadd(dots[s], ishl(high[s], LOW));
}

LT_INLINE void chunks_dot(const format *f, int32_t p, const uint8_t *data, few x, int32_t chunks, int64_t ahead,
                          i32x16 dots[]) {
    (void)f, (void)p;
    planes_dot(data, 0, 1, x, chunks, ahead, dots);
}

LT_INLINE void pair_dot(const format *f, int32_t p, const uint8_t *data, int64_t apart, few x, int32_t chunks,
                        int64_t ahead, i32x16 dots[]) {
    (void)f, (void)p;
    planes_dot(data, apart, 2, x, chunks, ahead, dots);
}

LT_INLINE void decode(const format *f, int32_t p, const uint8_t *data, uint8_t to[][TILE_BLOCKS][64], int32_t b) {
    (void)f, (void)p;
#pragma GCC unroll 8
    for (int s = 0; s < STEPS; s++) {
        const u8x64 low = plane_step(data, LOW, s);
        const u8x64 high = HIGH ? plane_step(data + LOW_BYTES, HIGH ? HIGH : 1, s) : low;
        u8store(to[s][b], HIGH && HALVES == 1 ? u8or(low, u8up(high, LOW)) : low);
        if (HALVES == 2) u8store(to[PANEL * STEPS + s][b], high);
    }
}

#if WHOLE
LT_INLINE void blocks_dot(const format *f, int32_t block, int32_t blocks, few x, i32x16 dots[]) {
#if STREAMS == 2
    if (HIGH == 0 && blocks == 2 && x.n <= AT_ONCE / 2) {
        plane_streams(chunk_at(f, block, 0), f->chunks * (int64_t)BYTES, x, f->chunks, LOW, STEPS, dots);
        return;
    }
#endif
    for (int32_t b = 0; b < blocks; b++)
        chunks_dot(f, 0, chunk_at(f, block + b, 0), x, f->chunks, PREFETCH, dots + b * x.n);
}

/* Whole rows have one zero, a whole number. */
LT_INLINE f32x16 row_finish(const format *f, i32x16 sums, int32_t block, float act_scale, float act_sum) {
    const i32x16 dot = isub(sums, iset1((int32_t)(f->one_zero * act_sum)));
    return vmul(vfrom_i32(dot), vmul(vset1(act_scale), vload(f->row_scale + (int64_t)block * ROWS)));
}
#else
LT_INLINE f32x16 add_group(f32x16 y, i32x16 sums, grid w, float act_scale, float act_sum) {
#if NESTED && OFFSETS
    const f32x16 dot = vfrom_i32(sums);
    y = vfma(vset1(act_scale * act_sum), w.offset, y);
#else
    const f32x16 dot = vfnma(vset1(act_sum), w.zero, vfrom_i32(sums));
#endif
    return vfma(vmul(vset1(act_scale), w.scale), dot, y);
}
#endif

#include "linear.h"
