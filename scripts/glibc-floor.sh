#!/bin/sh
# glibc-floor.sh <addon ...>: fails if an addon needs a newer glibc than the oldest supported distributions have.
set -eu
floor=GLIBC_2.28
for addon in "$@"; do
  needed=$(objdump -T "$addon" | grep -oE 'GLIBC_[0-9.]+' | sort -Vu)
  newest=$(printf '%s\n' "$needed" "$floor" | sort -V | tail -n 1)
  echo "$addon needs" $needed
  [ -n "$needed" ] && [ "$newest" = "$floor" ] || { echo "$addon needs more than $floor" >&2; exit 1; }
done
