//! node::memory - how much memory this process may have: the machine's, or its control group's.

use std::fs;
use std::path::Path;

/// The smallest limit that the system sets, in bytes; none where it does not tell.
pub(super) fn limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = group_files(&groups);
    let groups = groups.iter().filter_map(|path| {
        let text = fs::read_to_string(path).ok()?;
        // "max" is no number: no limit.
        text.trim().parse::<u64>().ok()
    });
    let machine = fs::read_to_string("/proc/meminfo").ok();
    let machine = machine.and_then(|text| total(&text));
    groups.chain(machine).min()
}

/// The files that hold the limits of a process whose /proc/self/cgroup is `text` (cgroups(7)),
/// those of the groups above included.
fn group_files(text: &str) -> Vec<String> {
    let mut files = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            list if list.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        for group in Path::new(path).ancestors() {
            let group = group.to_string_lossy();
            files.push(format!("{root}{}/{file}", group.trim_end_matches('/')));
        }
    }
    files
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Both versions of control groups, and the groups above.
    #[test]
    fn limits_are_found() {
        assert_eq!(
            group_files("0::/system.slice/postrider.service\n"),
            [
                "/sys/fs/cgroup/system.slice/postrider.service/memory.max",
                "/sys/fs/cgroup/system.slice/memory.max",
                "/sys/fs/cgroup/memory.max"
            ]
        );
        assert_eq!(
            group_files("4:memory:/a\n1:cpu:/b\nnonsense\n"),
            [
                "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes"
            ]
        );
        assert_eq!(
            total("MemFree: 1 kB\nMemTotal:       2048 kB\n"),
            Some(2 << 20)
        );
        assert_eq!(total("MemTotal: many"), None);
        assert!(limit().is_some_and(|bytes| bytes > 1 << 20));
    }
}
