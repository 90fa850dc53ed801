/* A tile: TILE_TOKENS rows of int8 codes times TILE_BLOCKS blocks of sixteen rows of bytes, whose sums stay in registers.
 *
 * A panel holds the bytes, decoded once for many tokens: [steps][TILE_BLOCKS][VECTOR]. */
#pragma once
#include "i8x64.h"

/* A panel of so many steps as tiles want it: up to a whole span, and in pairs. */
LT_INLINE void finish_panel(uint8_t weights[][TILE_BLOCKS][VECTOR], int32_t steps) {
    for (int32_t s = steps; s % SPAN != 0; s++) memset(weights[s], 0, sizeof weights[s]); /* codes are 0 */
#if PAIRED
    for (int32_t s = 0; s < steps; s += 2) u8pair(weights[s][0], weights[s + 1][0]);
#endif
}

#if SPAN > 1
/* SPAN steps of a panel times `tokens` tokens. */
LT_INLINE void tile_span(const uint8_t weights[][TILE_BLOCKS][VECTOR], const int8_t *codes, int64_t stride, int tokens,
                         narrow sums[][TILE_BLOCKS]) {
#if PAIRED
    i8pair a[TILE_TOKENS / 2][SPAN / 2]; /* an odd token meets itself */
    for (int t = 0; t < tokens; t += 2) i8load_pairs(codes + t * stride, t + 1 < tokens ? stride : 0, a[t / 2]);
    for (int i = 0; i < SPAN; i += 2)
        for (int h = 0; h < 2; h++) {
            const u8x64 w = u8load(weights[i + h][0]);
            for (int t = 0; t < tokens; t += 2) sums[t + h][0] = dot8(sums[t + h][0], w, a[t / 2][i / 2]);
        }
#else
    i8run a[TILE_TOKENS];
    for (int t = 0; t < tokens; t++) a[t] = i8load(codes + t * stride, SPAN);
#pragma GCC unroll 4
    for (int i = 0; i < SPAN; i++)
        for (int b = 0; b < TILE_BLOCKS; b++) {
            const u8x64 w = u8load(after(weights[i][b], sums[0][b]));
            for (int t = 0; t < tokens; t++) sums[t][b] = dot4of(sums[t][b], w, a[t], i);
        }
#endif
}
#endif

/* Steps of a panel, a multiple of SPAN, times `tokens` tokens. */
LT_INLINE void tile_steps(const uint8_t weights[][TILE_BLOCKS][VECTOR], int32_t steps, const int8_t *codes,
                          int64_t stride, int tokens, narrow result[TILE_TOKENS][TILE_BLOCKS]) {
    narrow sums[TILE_TOKENS][TILE_BLOCKS]; /* in registers, as long as every loop over it is unrolled */
#pragma GCC unroll 12
    for (int t = 0; t < tokens + (PAIRED && tokens % 2); t++)
#pragma GCC unroll 2
        for (int b = 0; b < TILE_BLOCKS; b++) sums[t][b] = nzero();
#if SPAN > 1
    for (int32_t s = 0; s < steps; s += SPAN) tile_span(weights + s, codes + s * STEP, stride, tokens, sums);
#else
    /* Every third row: one register more reaches the two behind it. Left to itself the compiler keeps an address for each,
     * and most of them in memory. */
    const int8_t *row[TILE_TOKENS / 3 + 1];
#pragma GCC unroll 5
    for (int i = 0; i < (tokens + 2) / 3; i++) row[i] = codes + 3 * i * stride;
    for (int32_t s = 0; s < steps; s++) {
        u8x64 w[TILE_BLOCKS];
#pragma GCC unroll 2
        for (int b = 0; b < TILE_BLOCKS; b++) w[b] = u8load(weights[s][b]);
#pragma GCC unroll 12
        for (int t = 0; t < tokens; t++) {
            const i8x4 a = i8load4(row[t / 3] + t % 3 * stride);
#pragma GCC unroll 2
            for (int b = 0; b < TILE_BLOCKS; b++) sums[t][b] = dot4(sums[t][b], w[b], a);
        }
#pragma GCC unroll 5
        for (int i = 0; i < (tokens + 2) / 3; i++) {
            row[i] += STEP;
            __asm__("" : "+r"(row[i]));
        }
    }
#endif
#if PAIRED
    for (int t = 0; t < tokens; t += 2) unpair(&sums[t][0], &sums[t + 1][0]);
#endif
#pragma GCC unroll 12
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 2
        for (int b = 0; b < TILE_BLOCKS; b++) result[t][b] = sums[t][b];
}

/* The same with sums in full, as narrow ones hold few steps on some ISAs. safe: SAFE_STEPS of the largest byte of a panel
 * times the largest code. */
LT_INLINE void tile(const uint8_t weights[][TILE_BLOCKS][VECTOR], int32_t steps, const int8_t *codes, int64_t stride,
                    int tokens, int32_t safe, i32x16 total[TILE_TOKENS][TILE_BLOCKS]) {
#pragma GCC unroll 12
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 2
        for (int b = 0; b < TILE_BLOCKS; b++) total[t][b] = izero();
    for (int32_t s = 0, stop; s < steps; s = stop) {
        stop = safe == INT32_MAX ? steps : lt_min(s + safe, steps);
        narrow sums[TILE_TOKENS][TILE_BLOCKS];
        tile_steps(weights + s, stop - s, codes + s * STEP, stride, tokens, sums);
#pragma GCC unroll 12
        for (int t = 0; t < tokens; t++)
#pragma GCC unroll 2
            for (int b = 0; b < TILE_BLOCKS; b++) total[t][b] = widen(total[t][b], sums[t][b]);
        if (safe == INT32_MAX) break;
    }
}

#if AMX
#include "../../amx.h"

/* The same for `tokens` tokens, twice AMX_ROWS of them or those that amx_begin() was told of, `depth` steps at a time, as
 * it was told too. The last ones may go beyond `steps`, where codes are 0 and weights do not matter. */
LT_INLINE void amx_tile(const uint8_t weights[][TILE_BLOCKS][VECTOR], int32_t steps, int32_t depth, const int8_t *codes,
                        int64_t stride, int tokens, i32x16 total[][TILE_BLOCKS]) {
    const int two = tokens > AMX_ROWS;
    amx_zero(0);
    amx_zero(1);
    amx_zero(2);
    amx_zero(3);
    for (int32_t s = 0; s < steps; s += depth) {
        amx_load(6, weights[s][0], sizeof weights[s]);
        amx_load(7, weights[s][1], sizeof weights[s]);
        amx_load(4, codes + s * STEP, stride);
        amx_dot(0, 4, 6);
        amx_dot(1, 4, 7);
        if (!two) continue;
        amx_load(5, codes + s * STEP + AMX_ROWS * stride, stride);
        amx_dot(2, 5, 6);
        amx_dot(3, 5, 7);
    }
    amx_store(0, &total[0][0], sizeof total[0]);
    amx_store(1, &total[0][1], sizeof total[0]);
    if (!two) return;
    amx_store(2, &total[AMX_ROWS][0], sizeof total[0]);
    amx_store(3, &total[AMX_ROWS][1], sizeof total[0]);
}
#endif
