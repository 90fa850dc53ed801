/* float32 weights. */
#define ELEMENT float
#define LOAD vload
#define LOADN vloadn
#include "dense.h"
