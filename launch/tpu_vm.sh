#!/usr/bin/env bash
# Trains on a Cloud TPU slice, from this machine; docs/launch.md explains the steps:
#
#   launch/tpu_vm.sh create | setup | devices | train [OPTIONS OF train] | stop | delete
#
# NAME, ZONE, TYPE, VERSION, SPOT and SHARE can be set in the environment. `gcloud` must be logged in.
set -euo pipefail

NAME=${NAME:-jaxtune}
ZONE=${ZONE:-us-east5-b}
TYPE=${TYPE:-v6e-16}
# The software of the hosts: v2-alpha-tpuv6e for v6e, v2-alpha-tpuv5-lite for v5e (v5litepod-16),
# v2-alpha-tpuv5 for v5p, tpu-ubuntu2204-base for v4.
VERSION=${VERSION:-v2-alpha-tpuv6e}
# Types of v4 and v5p count the two cores of each chip, which JAX sees as one device.
case $TYPE in
    v4-* | v5p-*) DEVICES=$((${TYPE##*-} / 2)) ;;
    *) DEVICES=${TYPE##*-} ;;
esac
# NFS that all hosts reach, such as Filestore, as SERVER:/PATH; `setup` mounts it at /runs.
SHARE=${SHARE:-}
PYTHON=.venv/bin/python

everywhere() {  # runs a command in the checkout of every host, at the same time
    gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="cd jaxtune && $1"
}

case ${1:-} in
    create)
        gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" \
            --version="$VERSION" ${SPOT:+--spot}
        ;;
    setup)  # copies what is committed here; the hosts' own Python is too old
        copy=$(mktemp -d)
        trap 'rm -r "$copy"' EXIT
        git archive --format=tar.gz --output="$copy/jaxtune.tar.gz" HEAD
        gcloud compute tpus tpu-vm scp "$copy/jaxtune.tar.gz" "$NAME:" --zone="$ZONE" --worker=all
        gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="mkdir -p jaxtune"
        everywhere "tar -xzf ../jaxtune.tar.gz && python3 -m pip install --quiet --user uv &&
            python3 -m uv venv --quiet --allow-existing --python 3.12 &&
            python3 -m uv pip install --quiet -e '.[tpu]'"
        [[ -z $SHARE ]] || everywhere "sudo apt-get install -y -qq nfs-common && sudo mkdir -p /runs &&
            { mountpoint -q /runs || sudo mount -t nfs $(printf %q "$SHARE") /runs; }"
        ;;
    devices)
        everywhere "$PYTHON launch.py devices --distributed --expect $DEVICES"
        ;;
    train)  # goes on if the connection breaks: the same step then shows the log again
        shift
        arguments=$(printf ' %q' "${@:---config=configs/palette_demo.py}")
        everywhere "if ! kill -0 \$(cat train.pid 2> /dev/null || echo none) 2> /dev/null; then
            nohup $PYTHON launch.py train --distributed$arguments >> train.log 2>&1 & echo \$! > train.pid
            fi; tail -n 50 --pid=\$(cat train.pid) -F train.log; wait \$!"
        ;;
    stop)  # all processes stop after the same step, and save
        everywhere "kill -TERM \$(cat train.pid)"
        ;;
    delete)
        gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE" --quiet
        ;;
    *)
        sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
esac
