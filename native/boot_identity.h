// Which boot of the system this is.
#pragma once

#include <string>

#include "result.h"

namespace bhyve {

// The same text for as long as the system runs, and another one after every boot. Fails where the system has
// none: ENOENT on FreeBSD before 14, ENXIO there until the random device is seeded, ENOSYS on other systems.
// The time of the boot would not do: it changes whenever the clock is set.
Result<std::string> bootIdentity();

} // namespace bhyve
