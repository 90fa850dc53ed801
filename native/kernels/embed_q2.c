#define BITS 2
#include "uniform_embed.h"

LT_KERNEL(embed_q2, lt_rows, embed_run);
