#define BITS 2
#define NESTED 16
#define OFFSETS 1
#include "uniform_embed.h"

LT_KERNEL(embed_q2m16, lt_rows, embed_run);
