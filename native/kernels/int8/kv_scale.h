/* What the integer types of the cache share: numbers x as codes rint(x / scale), the scale a half float. */
#pragma once
#include "../f32x16.h"

/* Rounds the scale to a half float that is finite; returns 1 / scale, 0 for 0. */
static inline f32x16 kv_scale(uint16_t *half, float scale) {
    const f32x16 finite = vmax(vmin(vset1(scale), vset1(65504)), vset1(-65504));
    vstoren_f16(half, finite, 1);
    const float rounded = vfirst(vloadn_f16(half, 1));
    return vset1(rounded == 0 ? 0 : 1 / rounded);
}

static inline f32x16 kv_code(f32x16 x, f32x16 inverse, float least, float most) {
    return vmax(vmin(vrint(vmul(x, inverse)), vset1(most)), vset1(least));
}
