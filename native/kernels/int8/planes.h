/* Planes of bits: what several formats are made of. A chunk of a plane, so many steps of 16 rows by four columns, is
 * width * steps / 8 vectors of fields `width` bits wide, the first step in a byte's lowest bits. */
#pragma once
#include "i8x64.h"

/* The sum of fields' own, where field i was met in its place and is 2^(width * i) too large. */
LT_INLINE i32x16 join_fields(const i32x16 sums[], int fields, int width) {
    i32x16 dot = sums[fields - 1];
#pragma GCC unroll 8
    for (int i = fields - 2; i >= 0; i--) dot = iadd(ishr(dot, width), sums[i]);
    return dot;
}

/* One plane of one block, over chunks `stride` bytes apart, times one token. */
LT_INLINE i32x16 plane_dot(const uint8_t *data, int64_t stride, const int8_t *codes, int32_t chunks,
                            int64_t ahead, int width, int steps) {
    const int fields = 8 / width, negative = NEGATIVE_BITS && width == 1, in_place = IN_PLACE && !negative;
    const int sums = !in_place ? 1 : width == 1 ? 4 : fields; /* the upper four bits come down: fewer sums to join */
    const int32_t safe = SAFE_STEPS(127 * ((1 << width) - 1)) / steps;
    i32x16 total[8];
#pragma GCC unroll 8
    for (int i = 0; i < sums; i++) total[i] = izero();
    for (int32_t c = 0; c < chunks;) {
        const int32_t stop = SAFE_STEPS(127) == INT32_MAX ? chunks : lt_min(c + safe, chunks);
        narrow part[8];
#pragma GCC unroll 8
        for (int i = 0; i < sums; i++) part[i] = nzero();
        for (; c < stop; c++) {
            const i8run run = i8load(codes + c * steps * 4, steps);
#pragma GCC unroll 8
            for (int v = 0; v < width * steps / 8; v++) {
                const uint8_t *at = data + c * stride + v * 64;
                const u8x64 bytes = u8load(at);
                const u8x64 upper = width == 1 ? u8down4(bytes) : bytes;
                __builtin_prefetch(at + ahead);
#pragma GCC unroll 8
                for (int i = 0; i < fields; i++) {
                    const u8x64 field = u8field(i < sums || !in_place ? bytes : upper, width, in_place ? i % sums : i);
                    part[i % sums] = dot4of(part[i % sums], field, run, v * fields + i);
                }
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < sums; i++) total[i] = widen(total[i], part[i]);
    }
    if (negative) return isub(izero(), total[0]);
    const int shifted = in_place && LAST_SHIFTED;
    const i32x16 dot = join_fields(total, sums - shifted, width);
    return shifted ? iadd(dot, total[sums - 1]) : dot;
}

#if STREAMS == 2
/* Whole rows of two blocks `apart`, chunk by chunk: memory is read faster as two streams. */
LT_INLINE void plane_streams(const uint8_t *data, int64_t apart, const int8_t *codes, int32_t chunks, int width,
                             int steps, i32x16 dots[2]) {
    const int fields = 8 / width, bytes = width * steps * 8;
    narrow sums[2][8];
#pragma GCC unroll 8
    for (int i = 0; i < fields; i++) sums[0][i] = sums[1][i] = nzero();
    int32_t c = 0;
    for (int near_end = 0; near_end < 2; near_end++) { /* there, what comes next lies behind the second block */
        const int64_t ahead = PREFETCH + (near_end ? apart : 0);
        const int32_t stop = near_end ? chunks : chunks - PREFETCH / bytes;
        for (; c < stop; c++)
#pragma GCC unroll 8
            for (int v = 0; v < width * steps / 8; v++, data += 64, codes += fields * 4) {
                const u8x64 first = u8load(data), second = u8load(data + apart);
                __builtin_prefetch(data + ahead);
                __builtin_prefetch(data + apart + ahead);
#pragma GCC unroll 8
                for (int i = 0; i < fields; i++) {
                    const i8x4 a = i8load4(codes + i * 4);
                    sums[0][i] = dot4(sums[0][i], u8field(first, width, i), a);
                    sums[1][i] = dot4(sums[1][i], u8field(second, width, i), a);
                }
            }
    }
#pragma GCC unroll 2
    for (int b = 0; b < 2; b++) dots[b] = join_fields(sums[b], fields, width);
}
#endif

/* One step of a plane's chunk, one weight to a byte. */
LT_INLINE u8x64 plane_step(const uint8_t *plane, int width, int step) {
    return u8down(u8load(plane + step * width / 8 * 64), width, step % (8 / width));
}
