#include "f16.h"

LT_KERNEL(embed_f16, lt_rows, embed_run);
