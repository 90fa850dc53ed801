#define BITS 4
#define NESTED 16
#define OFFSETS 0
#include "uniform_embed.h"

LT_KERNEL(embed_q4s16, lt_rows, embed_run);
