/* AMX as kernels use it: eight registers of up to 16 rows by 64 bytes, and products between them.
 *
 *     0..3  sums: 16 tokens by 16 rows of a matrix, int32
 *     4, 5  activations of 16 tokens, int8
 *     6, 7  weights of 16 rows of a matrix, uint8: [steps][16 rows][4], as a panel has them (kernels/int8/tile.h)
 *
 * Shapes belong to a thread, from amx_begin() to amx_end(). In assembly, as the intrinsics of gcc 12 do not say which
 * memory they read: it drops what was written there. No compiler uses these registers by itself. */
#pragma once
#include <stdint.h>

enum { AMX_ROWS = 16, AMX_BYTES = 64 };

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16]; /* of a row */
    uint8_t rows[16];
} amx_shapes;

#ifdef LT_EMULATE_AMX
#include "amx_emulated.h"
#else
#define amx_configure(shapes) __asm__ volatile("ldtilecfg %0" : : "m"(shapes))
#define amx_end() __asm__ volatile("tilerelease" : : : "memory")
#define amx_zero(r) __asm__ volatile("tilezero %%tmm" #r : :)
#define amx_load(r, from, stride) \
    __asm__ volatile("tileloadd (%0,%1), %%tmm" #r : : "r"(from), "r"((int64_t)(stride)) : "memory")
#define amx_store(r, to, stride) \
    __asm__ volatile("tilestored %%tmm" #r ", (%0,%1)" : : "r"(to), "r"((int64_t)(stride)) : "memory")
#define amx_dot(sums, codes, weights) __asm__ volatile("tdpbsud %%tmm" #weights ", %%tmm" #codes ", %%tmm" #sums : :)
#endif

/* Registers for so many tokens and steps of four columns: 1 to 16. */
static inline void amx_begin(int32_t tokens, int32_t steps) {
    amx_shapes shapes = {.palette = 1};
    for (int r = 0; r < 8; r++) {
        shapes.rows[r] = (uint8_t)(r < 6 ? tokens : steps);
        shapes.bytes[r] = (uint16_t)(r == 4 || r == 5 ? steps * 4 : AMX_BYTES);
    }
    amx_configure(shapes);
}
