//! What a process has cost.

/// User and system time of all threads in microseconds: fields 14 and 15 of proc(5), in ticks of 10 ms.
pub fn us(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u32 = after_name.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u32>().ok()).sum();
    f64::from(ticks) * 10_000.0
}
