/* Keys and values as 8-bit integers, -127..127, with a half-float scale for each 32 of a head. A byte holds one, 128
 * too large. */
#include "i8x64.h"
#include "kv_scale.h"

enum { KV_BYTES = 16, KV_HALVES = 1, KV_GROUP = 32 };
enum { KV_ZERO = SIGNED_WEIGHTS ? 0 : 128, KV_MOST = SIGNED_WEIGHTS ? 128 : 255 };

LT_INLINE u8x64 kv_half(u8x64 v, int half) {
    (void)half;
    return SIGNED_WEIGHTS ? u8signed(v) : v;
}

static inline uint16_t kv_encode(uint8_t *codes, const float *x) {
    const f32x16 most = vmax(vabs(vload(x)), vabs(vload(x + 16)));
    uint16_t scale;
    const f32x16 inverse = kv_scale(&scale, vhmax(most) / 127);
    for (int i = 0; i < 32; i += 16) vstore_i8((int8_t *)codes + i, kv_code(vload(x + i), inverse, -127, 127));
    for (int i = 0; i < 32; i++) codes[i] ^= 0x80;
    return scale;
}
