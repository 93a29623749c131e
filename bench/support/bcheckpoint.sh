#!/bin/sh
# A rival: works like CBSD's bcheckpoint, but is new code. It sends the request, sleeps, and assumes success.
#   bcheckpoint.sh create <directory> <name> <bhyvectl> <socket> <seconds per step>
#   bcheckpoint.sh list <directory>
#   bcheckpoint.sh destroyall <directory>
mode=$1
directory=$2

create() {
  name=$1 bhyvectl=$2 socket=$3 seconds=$4
  mkdir -p "$directory" || exit 1
  "$bhyvectl" "$socket" "$directory/$name.ckp" || exit 1
  step=0
  while [ "$step" -lt 5 ]; do
    sleep "$seconds"
    step=$((step + 1))
  done
  [ -e "$directory/$name.ckp" ] || exit 1
  echo "$directory/$name.ckp"
}

list() {
  for file in "$directory"/*.ckp; do
    [ -e "$file" ] || continue
    size=$(stat -c %s "$file" 2>/dev/null || stat -f %z "$file")
    date=$(stat -c %y "$file" 2>/dev/null || stat -f %Sm "$file")
    echo "$(basename "$file" .ckp) $size $date"
  done
}

destroyall() {
  for file in "$directory"/*.ckp; do
    [ -e "$file" ] || continue
    rm -f "$file" "$file.kern" "$file.meta" "$file.manifest"
  done
}

shift 2
case $mode in
  create) create "$@" ;;
  list) list ;;
  destroyall) destroyall ;;
  *) exit 64 ;;
esac
