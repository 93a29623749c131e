// Identifies the current boot of the system.
#pragma once

#include <string>

#include "result.h"

namespace bhyve {

// Returns a string that is constant while the system runs and different after each boot. Fails with ENOENT on
// FreeBSD before 14, with ENXIO on FreeBSD until the random device is seeded, and with ENOSYS on other
// systems. The time of the boot is not usable because it changes when the clock is set.
Result<std::string> bootIdentity();

} // namespace bhyve
