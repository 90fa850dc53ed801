/* Keys and values as 4-bit integers, -8..7, with a half-float scale for each 32 of a head: the largest of them has the
 * code -8, so its scale has the other sign (llama.cpp's Q4_0). A byte holds one in its low half and the one 16 places
 * further in its high half, both 8 too large. */
#include "i8x64.h"
#include "kv_scale.h"

enum { KV_BYTES = 16, KV_HALVES = 2, KV_GROUP = 32 };
enum { KV_ZERO = 8, KV_MOST = 15 };

LT_INLINE u8x64 kv_half(u8x64 v, int half) { return u8down(v, 4, half); }

static inline uint16_t kv_encode(uint8_t *codes, const float *x) {
    float most = x[0];
    for (int i = 1; i < 32; i++)
        if (fabsf(x[i]) > fabsf(most)) most = x[i];
    uint16_t scale;
    const f32x16 inverse = kv_scale(&scale, most / -8);
    int8_t low[16], high[16];
    vstore_i8(low, kv_code(vload(x), inverse, -8, 7));
    vstore_i8(high, kv_code(vload(x + 16), inverse, -8, 7));
    for (int i = 0; i < 16; i++) codes[i] = (uint8_t)((low[i] + 8) | (high[i] + 8) << 4);
    return scale;
}
