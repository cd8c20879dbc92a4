#!/bin/bash
# Runs inside the system that cross/boot-test.sh boots, as root: installs the package and shows what is claimed of it, one line each.
# /boot-test holds the packages (1.deb, and 2.deb as its upgrade), the base weights, and the mode: full, or, under emulation where segmenting
# takes minutes, quick (processes emulated) or machine (a machine emulated): there a series that is too short gets a text report, which goes the
# same way but for the network.
set -u
cd /boot-test || exit 1
mode=$(cat mode)
shown=0
failed=0
PORT=11112
# Emulated programs take long to start.
PATIENCE=$([ "$mode" = full ] && echo 300 || echo 600)

# claim WORDS COMMAND...: one line, and what the command said where it is not shown.
claim() {
    local words=$1 said
    shift
    if said=$("$@" 2>&1); then
        shown=$((shown + 1))
        echo "CLAIM shown: $words"
    else
        failed=$((failed + 1))
        echo "CLAIM NOT SHOWN: $words"
        printf '%s\n' "$said" | head -20 | sed 's/^/    | /'
    fi
}

# within SECONDS COMMAND...: tries until it succeeds.
within() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.5
    done
}

pid() { systemctl show -p MainPID --value scanside; }
active() { [ "$(systemctl is-active scanside)" = active ]; }
replaced() { active && [ "$(pid)" != "$1" ] && echo | timeout 1 bash -c "</dev/tcp/127.0.0.1/$PORT"; }
echoed() { echoscu -aec SCANSIDE -aet MR1 127.0.0.1 $PORT; }
status() { scanside status --json; }
uid_of() { dcmdump +P SeriesInstanceUID "$1" | sed 's/.*\[\(.*\)\].*/\1/'; }
slices() { printf '%s\n' "$1"/series/* | head -"$2"; }

# The result of a series stands: over all its N objects, in STATE, everything at the archive.
stands() { # uid n state
    status >status.json && [ -s status.json ] || return 1
    jq -e --arg uid "$1" --argjson n "$2" --arg state "$3" '
        [.jobs[] | select(.series_uid == $uid and (.superseded | not))] as $jobs
        | ($jobs | length) == 1 and $jobs[0].instances == $n and $jobs[0].state == $state
        and ([$jobs[0].deliveries[].state] | length > 0 and all(. == "sent"))' status.json
}
# As many series have a result that stands.
series() { status >status.json && [ -s status.json ] && jq -e --argjson n "$1" '[.jobs[] | select(.superseded | not)] | length == $n' status.json; }
# Sends slices one by one, each on an association of its own, until each was acknowledged; calls $3 after half of them.
send_singly() { # folder count interruption
    local i=0 file
    while read -r file; do
        until storescu -aec SCANSIDE -aet MR1 127.0.0.1 $PORT "$file" >/dev/null 2>&1; do
            [ $SECONDS -lt "$DEADLINE" ] || return 1
            sleep 0.2
        done
        i=$((i + 1))
        [ $i -ne $(($2 / 2)) ] || $3 &
    done < <(slices "$1" "$2")
    wait
}

### Installed
claim "the package installs" dpkg -i 1.deb
installed() {
    id scanside && [ "$(systemctl is-enabled scanside)" = enabled ] && ! active &&
        [ "$(stat -c '%a %U:%G' /etc/scanside/scanside.toml)" = "640 root:scanside" ] &&
        [ "$(stat -c '%a %U' /var/lib/scanside)" = "700 scanside" ] && [ "$(stat -c '%a %U' /etc/scanside/keys)" = "700 root" ] &&
        getent group render video
}
claim "user, groups, folders and modes are there; the service is enabled and waits for its configuration" installed
documented() {
    zcat /usr/share/man/man1/scanside-serve.1.gz | grep -q -- config && [ -s /usr/share/bash-completion/completions/scanside ] &&
        zcat /usr/share/doc/scanside/LICENCES.gz | grep -q 'Apache License' &&
        jq -e '.components | length > 100' /usr/share/doc/scanside/sbom.cdx.json
}
# A minimal root leaves out what lies under /usr/share/doc and man; the package's own list says what it brings.
contents() { dpkg -L scanside | grep -cE 'man1/scanside|bash-completion|LICENCES|sbom.cdx'; }
if [ -e /usr/share/doc/scanside/LICENCES.gz ]; then
    claim "man pages, completions, licences and SBOM are there" documented
else
    claim "the package lists man pages, completions, licences and SBOM" contents
fi
claim "the sideload watch is there and off, the retention timer is on" \
    bash -c '[ "$(systemctl is-enabled scanside-sideload.path)" = disabled ] && systemctl is-active scanside-retention.timer'

### Configured as docs/install-jetson.md says
sed -i -e "s/^listen = .*/listen = \"127.0.0.1:$PORT\"/" -e 's/^address = .*/address = "127.0.0.1:10400"/' \
    -e 's/^quiet_seconds = 30/quiet_seconds = 3 /' -e 's/^min_free_mb = .*/min_free_mb = 64/' /etc/scanside/scanside.toml
claim "the configuration is valid" scanside validate
claim "the base weights are taken from a file" scanside weights fetch --from mobile_sam.safetensors
printf 'for-the-test\n' >/etc/scanside/keys/observer.key
# At the most talkative level, for the claim about the journal.
mkdir -p /etc/systemd/system/scanside.service.d
printf '[Service]\nEnvironment=SCANSIDE_LOG=trace\n' >/etc/systemd/system/scanside.service.d/test.conf
# Emulated processes cannot be handed credentials or a network of their own (qemu-user lacks what systemd calls for them).
if [ "$mode" = quick ]; then
    printf 'LoadCredential=\nSetCredential=\n' >>/etc/systemd/system/scanside.service.d/test.conf
    mkdir -p /etc/systemd/system/scanside-retention.service.d
    printf '[Service]\nPrivateNetwork=no\n' >/etc/systemd/system/scanside-retention.service.d/test.conf
fi
systemctl daemon-reload
mkdir -p archive
(cd archive && exec storescp --fork -aet PACS -od . 10400 >/dev/null 2>&1) &

### Running
claim "the service starts and says that it is ready" systemctl start scanside
claim "systemctl status shows what it does" bash -c "systemctl show -p StatusText --value scanside | grep -E 'listening|series coming in'"
confined() {
    local p
    p=$(pid)
    [ "$(stat -c %U "/proc/$p")" = scanside ] || return 1
    grep -q '^NoNewPrivs:.1' "/proc/$p/status" && grep -Eq '^CapBnd:.0+$' "/proc/$p/status" || return 1
    # Under emulation the system call filter is the emulator's to have or not.
    [ "$mode" = quick ] || grep -q '^Seccomp:.2' "/proc/$p/status" || return 1
    ! nsenter -t "$p" -m touch /usr/bin/x 2>/dev/null && ! nsenter -t "$p" -m ls /home/x 2>/dev/null
}
claim "it runs without privileges in a read-only system" confined
secret() { # its own folder of credentials, or nobody's
    grep -q for-the-test /run/credentials/scanside.service/observer.key && ! runuser -u daemon -- cat /run/credentials/scanside.service/observer.key
}
[ "$mode" = quick ] || claim "its key is a credential that others cannot read" secret
claim "it answers DCMTK's echoscu" within 60 echoed
claim "a stranger is rejected" bash -c "! echoscu -aec SCANSIDE -aet STRANGER 127.0.0.1 $PORT"
# The others stay as they are from here on.
for seed in 1 2 3; do [ -e p$seed ] || scanside phantom --seed $seed --out p$seed >/dev/null; done
if [ "$mode" = full ]; then first=15 small=6 state='done'; else first=2 small=2 state=refused; fi
one=$(uid_of "$(slices p1 1)")
# shellcheck disable=SC2046
claim "it takes a series of $first slices from DCMTK's dcmsend" dcmsend -aec SCANSIDE -aet MR1 127.0.0.1 $PORT $(slices p1 $first)
claim "its result ($state) reaches DCMTK's storescp" within "$PATIENCE" stands "$one" $first $state
[ "$mode" != full ] || claim "a DICOM Segmentation is among the objects there" bash -c 'dcmdump +P Modality archive/* | grep -q SEG'

### The journal
fields() {
    journalctl -u scanside -o json --no-pager | jq -es '
        map(select(._TRANSPORT == "journal" and .SYSLOG_IDENTIFIER == "scanside" and .SCANSIDE_VERSION != null))
        | any(.SCANSIDE_JOB != null) and any(.SCANSIDE_ASSOCIATION != null)'
}
claim "the journal has its messages with fields (SCANSIDE_JOB, SCANSIDE_ASSOCIATION)" fields
no_patient() { ! journalctl -o export --no-pager | grep -a -E 'PHANTOM\^|PHANTOM-[0-9]' && journalctl -u scanside -o export --no-pager | grep -a -q "$one"; }
claim "no patient's name or id is in the journal, at the most talkative level" no_patient

### A release by the drop folder
if [ "$mode" = full ]; then
    claim "the first root is trusted" scanside keys trust 1.root.json --fingerprint "$(cat fingerprint)"
    claim "the sideload watch is switched on" systemctl enable --now scanside-sideload.path
    # In one piece: the watch takes at once what lies there.
    cp adapter.bundle /var/lib/scanside/drop/.part && mv /var/lib/scanside/drop/.part /var/lib/scanside/drop/thigh-2.bundle
    taken() { [ -z "$(ls /var/lib/scanside/drop)" ] && scanside adapters | grep -E '2 .*shadow'; }
    claim "a signed bundle in the folder is taken, makes its own masks on this box, and runs in shadow" within "$PATIENCE" taken
    [ -n "$(ls /var/lib/scanside/drop)" ] && journalctl -u scanside-sideload -n 20 --no-pager
fi

### kill -9
before=$(pid)
DEADLINE=$((SECONDS + PATIENCE))
killed() { systemctl kill -s KILL scanside; }
two=$(uid_of "$(slices p2 1)")
claim "kill -9 while a series comes in: the sender repeats only what was not acknowledged" send_singly p2 $small killed
claim "systemd has started it again" within 120 replaced "$before"
claim "nothing acknowledged was lost: the result over all $small slices stands and is at the archive" within "$PATIENCE" stands "$two" $small $state

### Hung
before=$(pid)
kill -STOP "$before"
claim "a daemon that hangs is replaced by the watchdog" within $((60 + PATIENCE)) replaced "$before"
claim "the journal says that it was the watchdog" bash -c "journalctl -u scanside --no-pager | grep -i 'watchdog timeout'"
claim "the state is as before" series 2

### Retention beside the daemon
claim "the retention service runs beside the daemon" systemctl start scanside-retention.service

### Upgraded
before=$(pid)
DEADLINE=$((SECONDS + PATIENCE))
cp /etc/scanside/scanside.toml kept.toml
upgrade() { dpkg -i 2.deb >upgrade.log 2>&1 </dev/null || echo "dpkg failed" >>upgrade.log; }
three=$(uid_of "$(slices p3 1)")
claim "an upgrade while a series comes in: every slice is acknowledged in the end" send_singly p3 $small upgrade
upgraded() { [ "$(dpkg-query -W -f '${Version} ${db:Status-Abbrev}' scanside)" = "$(dpkg-deb -f 2.deb Version) ii " ] || { cat upgrade.log && false; }; }
claim "the new version is installed" upgraded
claim "the new daemon runs" within 120 replaced "$before"
claim "the configuration is as the site wrote it" cmp kept.toml /etc/scanside/scanside.toml
claim "nothing was lost: the result over all $small slices stands and is at the archive" within "$PATIENCE" stands "$three" $small $state
results() {
    local uid file
    for uid in "$one" "$two" "$three"; do
        for file in $(grep -l -a -F "$uid" archive/*); do dcmdump +P Modality "$file"; done | grep -q SEG || return 1
    done
}
[ "$mode" != full ] || claim "each series has its segmentation at the archive" results

### Removed, installed again, purged
claim "the package is removed, and says what waits" bash -c "dpkg -r scanside | tee removed.log && grep 'objects to deliver' removed.log"
gone() { ! active && ! [ -e /usr/bin/scanside ] && ! [ -e /usr/lib/systemd/system/scanside.service ]; }
claim "program and service are gone" gone
claim "configuration and state are still there" bash -c 'cmp kept.toml /etc/scanside/scanside.toml && [ -s /var/lib/scanside/scanside.db ] && [ -n "$(ls /var/lib/scanside/spool/objects)" ]'
again() { dpkg -i 2.deb && systemctl start scanside && series 3; }
claim "installed again, it goes on with its state" again
claim "the package is purged" dpkg --purge scanside
purged() {
    ! [ -e /etc/scanside ] && ! [ -e /var/lib/scanside ] && ! [ -e /var/cache/scanside ] &&
        ! find /etc/systemd/system /var/lib/systemd -name 'scanside*' -not -path '*.service.d*' | grep .
}
claim "no configuration, key, image or link is left" purged

echo "BOOT-TEST END: $shown shown, $failed not shown, systemd $(systemctl --version | awk 'NR == 1 { print $2 }'), $(uname -m)"
