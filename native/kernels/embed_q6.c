#define BITS 6
#include "uniform_embed.h"

LT_KERNEL(embed_q6, lt_rows, embed_run);
