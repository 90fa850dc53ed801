#define BITS 3
#include "uniform_embed.h"

LT_KERNEL(embed_q3, lt_rows, embed_run);
