/* Keys and values as IEEE half floats. */
#include "f32x16.h"

enum { KV_BYTES = 32, KV_HALVES = 1, KV_GROUP = 0 };

static inline f32x16 kv_load(const uint8_t *p) {
    return vload_f16((const uint16_t *)p);
}

static inline uint16_t kv_encode(uint8_t *codes, const float *x) {
    for (int i = 0; i < 32; i += 16) vstore_f16((uint16_t *)codes + i, vload(x + i));
    return 0;
}
