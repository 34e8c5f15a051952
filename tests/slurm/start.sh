#!/usr/bin/env bash
# Installs SLURM and munge (Debian, Ubuntu; as root) and starts a cluster of one node on this machine, for
# tests/slurm/test_slurm.py. No systemd is needed; what already runs stays. `start.sh stop` ends it.
#
#   tests/slurm/start.sh && PGOLF_TEST_SLURM=1 pytest tests/slurm
#
# Partition "main" is the default; jobs in "urgent" take its place after 20 s of grace, and SLURM puts them back into the queue.
set -euo pipefail

# Under /srv: slurmctld refuses a state folder that others can write to.
state=${PGOLF_SLURM_STATE:-/srv/pgolf-slurm}

if [ "${1:-start}" = stop ]; then
    scontrol shutdown || true
    if [ -f "$state/own-munge" ]; then
        runuser -u munge -- munged --stop
        rm "$state/own-munge"
    fi
    exit 0
fi

if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
fi

mkdir -p "$state/ctld" "$state/d" /etc/slurm /run/munge
host=$(hostname -s)
# Not nproc, which gives OMP_NUM_THREADS where that is set: one core, and the tests of pre-emption wait for two.
cores=$(getconf _NPROCESSORS_ONLN)
memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.8)}' /proc/meminfo)
cat >/etc/slurm/slurm.conf <<CONF
ClusterName=pgolf
SlurmctldHost=$host
AuthType=auth/munge
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/d
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmctldTimeout=300
SlurmdTimeout=300
KillWait=10
# A job that went back into the queue starts again after a second, not after two minutes.
SchedulerParameters=requeue_delay=1,sched_interval=2,batch_sched_delay=1
GresTypes=gpu
NodeName=$host CPUs=$cores Gres=gpu:2 RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=$host MaxTime=INFINITE State=UP PriorityTier=10
CONF

# Two GPUs in name: what a job starts by torchrun runs on the CPU where there are none.
echo "NodeName=$host Name=gpu File=/dev/null,/dev/zero" >/etc/slurm/gres.conf

if [ ! -f /etc/munge/munge.key ]; then
    dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 status=none
fi
chown -R munge: /etc/munge /run/munge /var/lib/munge /var/log/munge
chmod 400 /etc/munge/munge.key
if ! munge -n >/dev/null 2>&1; then
    runuser -u munge -- munged
    touch "$state/own-munge"
fi
scontrol ping 2>/dev/null | grep -q UP || slurmctld
pgrep -x slurmd >/dev/null || slurmd

for _ in $(seq 30); do
    if sinfo --noheader --format=%T 2>/dev/null | grep -qE '^(idle|mixed|allocated)$'; then
        sinfo
        exit 0
    fi
    sleep 1
done
echo "SLURM did not come up; see $state/*.log" >&2
tail -q -n 5 "$state"/*.log >&2
exit 1
