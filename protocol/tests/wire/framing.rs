//! How requests are found in what clients send.

use super::support::*;
use serde_json::{Value, json};

const TWO: &str = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"test.echo\",\"params\":[\"é中😀\"]}\n{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"test.echo\",\"params\":{\"a\":\"b\\n\"}}";

fn sorted(mut lines: Vec<Value>) -> Vec<Value> {
    lines.sort_by_key(|line| line["id"].to_string());
    lines
}

#[tokio::test]
async fn half_close_answers_everything() {
    let daemon = Daemon::start();
    // One per line, several on a line, over lines, CRLF, and a last one without a newline.
    let input = format!(
        "{}\r\n{}{} \n\n{:#}\n{}",
        echo(1, json!([1])),
        echo(2, json!([2])),
        echo(3, json!([3])),
        echo(4, json!([4])),
        echo(5, json!([5]))
    );
    let answers = sorted(daemon.ask(input).await);
    let expected: Vec<Value> = (1..=5).map(|id| result(id, json!([id]))).collect();
    assert_eq!(answers, expected);
}

#[tokio::test]
async fn half_close_waits_for_slow_calls() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect().await;
    wire.send(format!(
        "{}\n{}",
        request(1, "test.hold", json!([1])),
        request(2, "test.hold", json!([2]))
    ))
    .await;
    wire.end_input().await;
    daemon.rig.begun(2).await;
    daemon.rig.gate.add_permits(2);
    assert_eq!(
        sorted(wire.rest().await),
        [result(1, json!([1])), result(2, json!([2]))]
    );
    assert!(daemon.stop().await.is_clean());
}

#[tokio::test]
async fn split_at_every_byte() {
    let daemon = Daemon::start();
    let expected = [result(1, json!(["é中😀"])), result(2, json!({ "a": "b\n" }))];
    for cut in 0..=TWO.len() {
        let mut wire = daemon.connect().await;
        wire.send(&TWO.as_bytes()[..cut]).await;
        // Lets the first part be read alone, most of the time.
        tokio::task::yield_now().await;
        wire.send(&TWO.as_bytes()[cut..]).await;
        wire.end_input().await;
        assert_eq!(sorted(wire.rest().await), expected, "cut at {cut}");
    }
    let mut wire = daemon.connect().await;
    for byte in TWO.as_bytes() {
        wire.send([*byte]).await;
    }
    wire.end_input().await;
    assert_eq!(sorted(wire.rest().await), expected);
}

#[tokio::test]
async fn an_answer_comes_without_a_newline_after_the_request() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect().await;
    wire.send(echo(1, json!([])).to_string()).await;
    assert_eq!(wire.line().await, Some(result(1, json!([]))));
}

#[tokio::test]
async fn after_a_syntax_error_the_next_line_counts() {
    let daemon = Daemon::start();
    for (input, errors) in [
        ("hello\nworld\n", 1),
        ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":NaN}\n", 1),
        ("{\"jsonrpc\":\"2.0\",\"id\":1\n", 1),
        ("{\"a\":\"\u{1}\"}\n", 1),
        ("{\"a\":1,}\n{\"b\":1,}\n", 2),
        ("}\n", 1),
        ("{\"a\":[1}\n", 1),
    ] {
        let answers = daemon.ask(format!("{input}{}\n", echo(9, json!(["after"])))).await;
        assert_eq!(answers.len(), errors + 1, "{input:?}: {answers:?}");
        for answer in &answers[..errors] {
            refused(answer, &Value::Null, -32700);
        }
        assert_eq!(answers[errors], result(9, json!(["after"])));
    }
    let mut bytes = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\"}\n".to_vec();
    bytes.extend_from_slice(echo(9, json!([])).to_string().as_bytes());
    let answers = daemon.ask(bytes).await;
    refused(&answers[0], &Value::Null, -32700);
    assert_eq!(answers[1], result(9, json!([])));
}

#[tokio::test]
async fn an_incomplete_request_at_the_end_is_an_error() {
    let daemon = Daemon::start();
    let answers = daemon.ask(format!("{}\n{{\"jsonrpc\":", echo(1, json!([])))).await;
    assert_eq!(answers.len(), 2);
    let error = answers.iter().find(|answer| answer["error"].is_object()).unwrap();
    refused(error, &Value::Null, -32700);
    assert!(daemon.ask("").await.is_empty());
    assert!(daemon.ask(" \n\r\n\t").await.is_empty());
}

#[tokio::test]
async fn errors_do_not_quote_the_input() {
    let daemon = Daemon::start();
    let answers = daemon.ask("{\"password\": hunter2}\n").await;
    assert!(!answers[0].to_string().contains("hunter2"));
}

#[tokio::test]
async fn http_is_told_so_and_closed() {
    let daemon = Daemon::start();
    for input in [
        "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "POST /rpc HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
    ] {
        let mut wire = daemon.connect().await;
        wire.send(input).await;
        let answers = wire.rest().await;
        assert_eq!(answers.len(), 1);
        refused(&answers[0], &Value::Null, -32700);
        assert!(answers[0]["error"]["message"].as_str().unwrap().contains("HTTP"));
    }
}

#[tokio::test]
async fn large_requests_go_through_and_come_back() {
    let daemon = Daemon::start();
    let text = "é".repeat(4 << 20);
    let answers = daemon
        .ask(format!("{}\n{}", echo(1, json!([text])), echo(2, json!([2]))))
        .await;
    assert_eq!(answers.len(), 2);
    let large = answers.iter().find(|answer| answer["id"] == 1).unwrap();
    assert_eq!(large["result"][0].as_str().unwrap().len(), 8 << 20);
}

/// The one-liners of the documentation, as far as the programs are here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_line_in_a_shell_works() {
    let daemon = Daemon::start();
    let path = daemon.path.display().to_string();
    let request = echo(1, json!(["shell"]));
    let python = format!(
        "import socket,sys;s=socket.socket(socket.AF_UNIX);s.connect('{path}');s.sendall(sys.stdin.buffer.read());\
         s.shutdown(socket.SHUT_WR);print(s.makefile().read(),end='')"
    );
    for (program, arguments) in [
        (
            "socat",
            vec!["-t30".to_owned(), "-".to_owned(), format!("UNIX-CONNECT:{path}")],
        ),
        ("nc", vec!["-N".to_owned(), "-U".to_owned(), path.clone()]),
        ("python3", vec!["-c".to_owned(), python]),
    ] {
        let spawned = tokio::process::Command::new(program)
            .args(&arguments)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn();
        let Ok(mut child) = spawned else {
            eprintln!("skipped: {program} is not installed");
            continue;
        };
        let mut input = child.stdin.take().unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut input, format!("{request}\n").as_bytes())
            .await
            .unwrap();
        drop(input);
        let output = within(child.wait_with_output()).await.unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        if complaint.contains("invalid option") || complaint.contains("usage") {
            eprintln!("skipped: another {program} than expected");
            continue;
        }
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(
            text,
            format!("{}\n", r#"{"jsonrpc":"2.0","id":1,"result":["shell"]}"#),
            "{program}: {complaint}"
        );
    }
}
