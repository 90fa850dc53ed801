/* Keys and values as 8-bit integers, -127..127, with a half-float scale for each 32 of a head. */
#include "kv_scale.h"

enum { KV_BYTES = 16, KV_HALVES = 1, KV_GROUP = 32 };

static inline f32x16 kv_load(const uint8_t *p, int half) {
    (void)half;
    return vload_i8((const int8_t *)p);
}

static inline uint16_t kv_encode(uint8_t *codes, const float *x) {
    const f32x16 most = vmax(vabs(vload(x)), vabs(vload(x + 16)));
    uint16_t scale;
    const f32x16 inverse = kv_scale(&scale, vhmax(most) / 127);
    for (int i = 0; i < 32; i += 16) vstore_i8((int8_t *)codes + i, kv_code(vload(x + i), inverse, -127, 127));
    return scale;
}
