#!/usr/bin/env bash
# certificates.sh OUT BROKER_HOST NAME...: a certificate authority, the broker's certificate and one for each NAME
# (devices by their device name, the centre as omnilabel-trainer). What exists is kept, so devices can be added later.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: $0 OUT BROKER_HOST NAME..." >&2
    exit 2
fi
out=$1 host=$2
shift 2
umask 077
mkdir -p "$out"
cd "$out"
days=825
if [ ! -e ca.key ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -keyout ca.key -out ca.crt \
        -subj "/CN=omnilabel site CA" -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign"
fi
issue() { # NAME USAGE SUBJECT_ALT_NAME
    [ -e "$1.crt" ] && return
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1.key" -out "$1.csr" -subj "/CN=$1"
    openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days "$days" -out "$1.crt" \
        -extfile <(printf 'basicConstraints=CA:FALSE\nextendedKeyUsage=%s\nsubjectAltName=%s\n' "$2" "$3")
    rm "$1.csr"
}
case $host in
    *[!0-9.]*) issue broker serverAuth "DNS:$host" ;;
    *) issue broker serverAuth "IP:$host" ;;
esac
for name; do
    case $name in
        '' | *[!A-Za-z0-9._-]*) echo "$name: a name is made of A-Z a-z 0-9 . _ -" >&2; exit 2 ;;
        # These would be the broker's own, the authority's, or other people's topics.
        broker | ca | release | blocks) echo "$name: this name is taken" >&2; exit 2 ;;
    esac
    issue "$name" clientAuth "DNS:$name"
done
