#include "bf16.h"

LT_KERNEL(embed_bf16, lt_rows, embed_run);
