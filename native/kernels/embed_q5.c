#define BITS 5
#include "uniform_embed.h"

LT_KERNEL(embed_q5, lt_rows, embed_run);
