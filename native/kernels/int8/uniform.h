/* linear for weights on uniform grids (../uniform.h). Include after defining BITS.
 *
 * A group of a row adds (act_scale * scale) * (codes . c - zero * act_sum) to the row's float, group after group: the
 * integers are exact, and the floats have one order everywhere. With WHOLE a row is one group. */
#pragma once
#include "../uniform.h"
#include "i8x64.h"

enum { PANEL = 16, MOST = (1 << BITS) - 1, PREFETCH = 2048 /* bytes ahead */ };

static inline format format_open(const lt_op *op, const lt_step *step) { return uniform_open(op, step, 4); }

/* One plane of one block, over chunks, times one token. */
LT_INLINE i32x16 plane_dot(const uint8_t *data, const int8_t *codes, int32_t chunks, int width) {
    const int fields = 8 / width, negative = NEGATIVE_BITS && width == 1, in_place = IN_PLACE && !negative;
    const int sums = in_place ? fields : 1;
    const int32_t safe = SAFE_STEPS((1 << width) - 1) / STEPS;
    i32x16 total[8];
#pragma GCC unroll 8
    for (int i = 0; i < sums; i++) total[i] = izero();
    for (int32_t c = 0; c < chunks;) {
        const int32_t stop = SAFE_STEPS(1) == INT32_MAX ? chunks : lt_min(c + safe, chunks);
        narrow part[8];
#pragma GCC unroll 8
        for (int i = 0; i < sums; i++) part[i] = nzero();
        for (; c < stop; c++) {
            const i8run run = i8load(codes + c * COLUMNS, STEPS);
#pragma GCC unroll 8
            for (int v = 0; v < width; v++) {
                const uint8_t *at = data + (int64_t)c * BYTES + v * 64;
                const u8x64 bytes = u8load(at);
                __builtin_prefetch(at + PREFETCH);
#pragma GCC unroll 8
                for (int i = 0; i < fields; i++)
                    part[in_place ? i : 0] =
                        dot4of(part[in_place ? i : 0], u8field(bytes, width, i), run, v * fields + i);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < sums; i++) total[i] = widen(total[i], part[i]);
    }
    if (negative) return isub(izero(), total[0]);
    const int shifted = in_place && LAST_SHIFTED, last = sums - 1 - shifted; /* field i is 2^(width * i) too large */
    i32x16 dot = total[last];
#pragma GCC unroll 8
    for (int i = last - 1; i >= 0; i--) dot = iadd(ishr(dot, width), total[i]);
    return shifted ? iadd(dot, total[sums - 1]) : dot;
}

LT_INLINE i32x16 chunks_dot(const format *f, const uint8_t *data, const int8_t *codes, int32_t chunks) {
    (void)f;
    const i32x16 low = plane_dot(data, codes, chunks, LOW);
    if (HIGH == 0) return low;
    return iadd(low, ishl(plane_dot(data + LOW * 64, codes, chunks, HIGH ? HIGH : 1), LOW));
}

LT_INLINE u8x64 plane_step(const uint8_t *plane, int width, int step) {
    return u8down(u8load(plane + step * width / 8 * 64), width, step % (8 / width));
}

LT_INLINE void decode(const uint8_t *data, uint8_t to[][TILE_BLOCKS][64], int32_t b) {
#pragma GCC unroll 8
    for (int s = 0; s < STEPS; s++) {
        u8x64 codes = plane_step(data, LOW, s);
        if (HIGH) codes = u8or(codes, u8up(plane_step(data + LOW * 64, HIGH ? HIGH : 1, s), LOW));
        u8store(to[s][b], codes);
    }
}

#if WHOLE
/* Whole rows have one zero, a whole number. */
LT_INLINE f32x16 row_finish(const format *f, i32x16 sums, int32_t block, float act_scale, float act_sum) {
    const i32x16 dot = isub(sums, iset1((int32_t)(f->one_zero * act_sum)));
    return vmul(vfrom_i32(dot), vmul(vset1(act_scale), vload(f->row_scale + (int64_t)block * ROWS)));
}
#else
LT_INLINE f32x16 add_group(f32x16 y, i32x16 sums, grid w, float act_scale, float act_sum) {
    const f32x16 dot = vfnma(vset1(act_sum), w.zero, vfrom_i32(sums));
    return vfma(vmul(vset1(act_scale), w.scale), dot, y);
}
#endif

#include "linear.h"
