#define BITS 6
#define NESTED 16
#define OFFSETS 0
#include "uniform_embed.h"

LT_KERNEL(embed_q6s16, lt_rows, embed_run);
