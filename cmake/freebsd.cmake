# Cross-compiles the addon for FreeBSD with clang and lld:
#
#   FREEBSD_SYSROOT=/path/to/base npx cmake-js compile -O build-freebsd-x64 \
#     --CDCMAKE_TOOLCHAIN_FILE=cmake/freebsd.cmake --CDFREEBSD_ARCH=x64
#
# FREEBSD_SYSROOT is an unpacked base.txz of that architecture, or a directory with the same usr/include and usr/lib. It
# can also be a directory with such a directory for each architecture, x64 and arm64. FREEBSD_ARCH is x64 or arm64.

set(CMAKE_SYSTEM_NAME FreeBSD)

if(NOT FREEBSD_SYSROOT)
  set(FREEBSD_SYSROOT "$ENV{FREEBSD_SYSROOT}")
endif()
if(NOT FREEBSD_ARCH)
  set(FREEBSD_ARCH x64)
endif()
if(EXISTS "${FREEBSD_SYSROOT}/${FREEBSD_ARCH}/usr/include/sys/param.h")
  set(FREEBSD_SYSROOT "${FREEBSD_SYSROOT}/${FREEBSD_ARCH}")
endif()
if(NOT EXISTS "${FREEBSD_SYSROOT}/usr/include/sys/param.h")
  message(FATAL_ERROR "FREEBSD_SYSROOT ('${FREEBSD_SYSROOT}') is not a FreeBSD base system: it has no usr/include/sys/param.h")
endif()

if(FREEBSD_ARCH STREQUAL "x64")
  set(CMAKE_SYSTEM_PROCESSOR amd64)
  set(machine x86_64)
elseif(FREEBSD_ARCH STREQUAL "arm64")
  set(CMAKE_SYSTEM_PROCESSOR arm64)
  set(machine aarch64)
else()
  message(FATAL_ERROR "FREEBSD_ARCH must be x64 or arm64, not '${FREEBSD_ARCH}'")
endif()

# The compiler derives the system's version, __FreeBSD__, from its target. It must be the version of the headers.
file(STRINGS "${FREEBSD_SYSROOT}/usr/include/sys/param.h" version REGEX "^#define[ \t]+__FreeBSD_version[ \t]")
string(REGEX MATCH "[0-9]+" version "${version}")
if(NOT version)
  message(FATAL_ERROR "${FREEBSD_SYSROOT}/usr/include/sys/param.h does not define __FreeBSD_version")
endif()
math(EXPR major "${version} / 100000")
math(EXPR minor "${version} / 1000 % 100")
set(CMAKE_SYSTEM_VERSION ${major}.${minor})
set(CMAKE_CXX_COMPILER_TARGET ${machine}-unknown-freebsd${major}.${minor})

find_program(FREEBSD_CXX NAMES clang++-19 clang++ REQUIRED)
set(CMAKE_CXX_COMPILER ${FREEBSD_CXX})
set(CMAKE_SYSROOT ${FREEBSD_SYSROOT})
foreach(kind EXE SHARED MODULE)
  set(CMAKE_${kind}_LINKER_FLAGS_INIT -fuse-ld=lld)
endforeach()

# CMake reads this file again for every test compilation. Only these variables are set then.
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES FREEBSD_SYSROOT FREEBSD_ARCH)

set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
