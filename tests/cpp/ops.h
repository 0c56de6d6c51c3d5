#pragma once

#include "case.h"

// Calls the op of a case with its tensors and numbers.
void call(const Case& c);
