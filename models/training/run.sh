#!/usr/bin/env bash
# Trains the denoiser in the background, and resumes where the last run stopped.
#   run.sh [start]   make the venv, fetch the data, start or go on
#   run.sh pause     freeze it for a while (a benchmark, say); resume thaws it
#   run.sh stop      save and end it
#   run.sh status    is it running, and its last lines
# TOTAL_STEPS (80000) is the length of the schedule: a larger one extends the run.
# TRAIN_THREADS (2) is the number of threads.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$here/../../build/training
mkdir -p "$work"
work=$(cd "$work" && pwd)
pidfile=$work/pid
stop_wait_s=180 # a validation, on a busy machine, must be able to end

running() { # a process id may have been given to somebody else since
  [[ -f $pidfile ]] && tr '\0' ' ' 2>/dev/null <"/proc/$(<"$pidfile")/cmdline" | grep -q 'train\.py'
}
need_running() { running || { echo "run.sh: no training is running" >&2; exit 1; }; }

start() {
  if running; then echo "already running, pid $(<"$pidfile")"; exit 0; fi
  "$here/venv.sh" >/dev/null
  "$work/venv/bin/python" "$here/data.py"
  cd "$here"
  # nice 5: others come first; 15 starved it. Passive waiting: with the two
  # cores shared, threads that spin at a barrier burn what others need.
  OMP_WAIT_POLICY=passive PYTHONDONTWRITEBYTECODE=1 \
    nohup setsid nice -n 5 "$work/venv/bin/python" train.py >>"$work/train.log" 2>&1 </dev/null &
  echo $! >"$pidfile"
  echo "started, pid $!; log: build/training/train.log"
}

stop() {
  need_running
  local pid; pid=$(<"$pidfile")
  kill -CONT "$pid"; kill -TERM "$pid"
  for ((i = 0; i < stop_wait_s * 10; i++)); do
    running || { echo stopped; rm -f "$pidfile"; return; }
    sleep 0.1
  done
  echo "run.sh: pid $pid has not ended after $stop_wait_s s; see build/training/train.log" >&2
  exit 1
}

case ${1:-start} in
  start) start ;;
  pause) need_running; kill -STOP "$(<"$pidfile")"; echo paused ;;
  resume) if running; then kill -CONT "$(<"$pidfile")"; echo resumed; else start; fi ;;
  stop) stop ;;
  status)
    if running; then echo "running, pid $(<"$pidfile"), state $(awk '/^State/{print $2,$3}' "/proc/$(<"$pidfile")/status")"; else echo "not running"; fi
    tail -n 3 "$work/train.log" 2>/dev/null || true
    tail -n 2 "$here/log.csv" 2>/dev/null || true ;;
  *) sed -n 's/^# \{0,1\}//;2,8p' "$0" >&2; exit 2 ;;
esac
