//! Participants that are looked up in bulk.

use super::*;

/// The last digit of the number that a conversation's id was made from.
fn last_digit(id: &str) -> u64 {
    id.split('-').next().unwrap().parse::<u64>().unwrap() % 10
}

#[test]
fn look_ahead_costs_one_request_for_a_hundred_updates() {
    for workers in [1, 8] {
        let platform = Platform::new();
        let client = participants(&platform, |_, _| None, |_| None);
        let client = client.build().unwrap();
        let batch = platform.batch(&client).workers(workers);
        let (report, outcomes) = collected(batch, customers(1_000));
        assert!(report.is_complete(), "{report:?}");
        assert_eq!((platform.requests(), platform.saw("details")), (1_010, 10));
        assert!(outcomes.values().all(|o| o.requests == 1));
        assert_eq!(
            outcomes[&1].resource_id.as_deref(),
            Some(format!("p-{}", uuid(0)).as_str())
        );
        assert!(platform.story().is_empty());
    }
}

#[test]
fn look_ahead_leaves_what_it_cannot_tell_to_single_reads() {
    let platform = Platform::new();
    let client = participants(
        &platform,
        |_, url| {
            let mut body = details_body(url, |id| last_digit(id) == 7);
            for conversation in body["conversations"].as_array_mut().unwrap() {
                let id = conversation["conversationId"].as_str().unwrap().to_owned();
                let people = conversation["participants"].as_array_mut().unwrap();
                match last_digit(&id) {
                    // Nobody yet; two of them; one without an id.
                    1 => people.truncate(1),
                    2 => people.push(people[1].clone()),
                    3 => people[1]["participantId"] = json!(null),
                    _ => {}
                }
            }
            Some(Ok(Response::new(200).with_body(body.to_string())))
        },
        |_| None,
    );
    let client = client.build().unwrap();
    let batch = platform.batch(&client).workers(4);
    let (report, outcomes) = collected(batch, customers(100));
    assert!(report.is_complete(), "{report:?}");
    for (line, outcome) in outcomes {
        let alone = matches!((line - 1) % 10, 1 | 2 | 3 | 7);
        assert_eq!(outcome.requests, 1 + u32::from(alone), "{line}");
    }
}

#[test]
fn look_ahead_that_is_not_permitted_is_off_with_one_notice() {
    let platform = Platform::new();
    let client = participants(
        &platform,
        |_, _| {
            Some(Ok(
                Response::new(403).with_body(r#"{"code":"missing.permissions"}"#)
            ))
        },
        |_| None,
    );
    let client = client.build().unwrap();
    let batch = platform.batch(&client).workers(4);
    let (report, _) = collected(batch, customers(500));
    assert!(report.is_complete(), "{report:?}");
    assert!(platform.saw("details") <= 4);
    let notices = platform.notices.lock().unwrap();
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert!(notices[0].contains("analytics:conversationDetail:view"));
}

/// What a run costs where the look-up works but for single faults.
#[test]
fn look_ahead_with_single_faults_costs_at_most_two_percent() {
    for workers in [1, 8] {
        let platform = Platform::new();
        let asked = AtomicUsize::new(0);
        let client = participants(
            &platform,
            move |_, _| match asked.fetch_add(1, Ordering::SeqCst) {
                1 => Some(Ok(Response::new(503))),
                7 => Some(broken()),
                13 => Some(Ok(Response::new(200).with_broken_body("cut"))),
                19 => Some(Ok(Response::new(200).with_body("<html>"))),
                _ => None,
            },
            |_| None,
        );
        let client = client.build().unwrap();
        let batch = platform.batch(&client).workers(workers);
        let (report, _) = collected(batch, customers(3_000));
        assert!(report.is_complete(), "{report:?}");
        let requests = platform.requests();
        assert!(requests <= 3_060, "{workers} workers: {requests}");
    }
}

#[test]
fn look_ahead_that_never_answers_is_off_and_no_outage() {
    for body in [
        Response::new(200).with_body("<html>"),
        Response::new(200).with_body("[]"),
        Response::new(503),
    ] {
        let platform = Platform::new();
        let client = participants(&platform, move |_, _| Some(Ok(body.clone())), |_| None);
        let client = client.build().unwrap();
        let (report, _) = collected(platform.batch(&client).workers(2), customers(1_000));
        assert!(report.is_complete(), "{report:?}");
        assert!(platform.saw("details") <= 30, "{}", platform.saw("details"));
        assert_eq!(platform.story(), ["participants are read"]);
    }
}

#[test]
fn look_ahead_with_a_wrong_id_reads_and_writes_again() {
    let platform = Platform::new();
    let client = participants(
        &platform,
        |_, url| {
            let ids = url.split("?id=").nth(1)?.split(',');
            let wrong: Vec<_> = ids
                .map(|id| {
                    json!({ "conversationId": id, "participants": [
                        { "participantId": "stale", "purpose": "customer" } ]})
                })
                .collect();
            let body = json!({ "conversations": wrong }).to_string();
            Some(Ok(Response::new(200).with_body(body)))
        },
        |_| None,
    );
    let client = client.build().unwrap();
    let (report, outcomes) = collected(platform.batch(&client), customers(9));
    assert!(report.is_complete(), "{report:?}");
    assert!(outcomes.values().all(|o| o.requests == 3));
}

#[test]
fn look_ahead_tells_and_refuses_conversations_that_are_over() {
    let over = |url: &str| {
        let ids = url.split("?id=").nth(1)?.split(',');
        let ended: Vec<_> = ids
            .map(|id| {
                json!({ "conversationId": id, "conversationEnd": "2026-01-01T00:00:00Z",
                    "participants": [{ "participantId": format!("p-{id}"), "purpose": "customer" }]})
            })
            .collect();
        let body = json!({ "conversations": ended }).to_string();
        Some(Ok(Response::new(200).with_body(body)))
    };
    let single = |id: &str| {
        Some(json!({ "endTime": "2026-01-01T00:00:00Z",
            "participants": [{ "id": format!("p-{id}"), "purpose": "customer" }]}))
    };
    for policy in [EndedPolicy::Allow, EndedPolicy::Warn, EndedPolicy::Refuse] {
        let platform = Platform::new();
        let client = participants(&platform, move |_, url| over(url), single);
        let client = client.ended_conversations(policy).build().unwrap();
        let (report, outcomes) = collected(platform.batch(&client), customers(100));
        if policy == EndedPolicy::Refuse {
            assert_eq!((report.failed, platform.saw("PATCH")), (100, 0));
        } else {
            assert!(report.is_complete(), "{report:?}");
            assert_eq!(platform.requests(), 101);
            assert!(outcomes.values().all(|o| o.conversation_ended));
        }
    }
}

#[test]
fn look_ahead_keeps_the_order_and_leaves_other_targets_alone() {
    let platform = Platform::new();
    let client = participants(&platform, |_, _| None, |_| None);
    let client = client.build().unwrap();
    let update = |n: u64| {
        let id = uuid(n % 70);
        match n % 5 {
            0 => Update::participant(id, "purpose:customer"),
            1 => Update::participant(id, "p-x"),
            _ => Update::participant(id, "customer"),
        }
        .set("n", n)
    };
    let mut last = HashMap::new();
    let batch = platform.batch(&client).workers(8);
    let report = batch.run((0..700).map(update), |outcome| {
        let before = last.insert(outcome.conversation_id.clone(), outcome.line);
        assert!(before.is_none_or(|before| before < outcome.line));
        ControlFlow::Continue(())
    });
    assert_eq!(report.lines(), 700);
    // Those by a participant's id are not found here, and not looked up.
    assert_eq!(report.failed, 140);
    // Each of 70 conversations is found once a name for it.
    assert!(
        platform.requests() <= 700 + 140 + 4,
        "{}",
        platform.requests()
    );
}

#[test]
fn prefetched_participants_spare_each_update_its_read() {
    let platform = Platform::new();
    let client = participants(&platform, |_, _| None, |_| None);
    let client = client.build().unwrap();
    let updates = customers(250);
    let found = client.prefetch_participants(updates.iter().map(Update::target));
    assert_eq!(found.unwrap(), 250);
    assert_eq!(platform.requests(), 3);
    for update in &updates {
        assert_eq!(client.update(update).unwrap().requests, 1);
    }
    // What is known is not asked for, nor what is no purpose that stays.
    let others = [
        Update::participant(uuid(900), "purpose:agent"),
        Update::secure(uuid(900)),
        Update::participant("no-uuid", "customer"),
    ];
    let all = updates.iter().chain(&others).map(Update::target);
    assert_eq!(client.prefetch_participants(all).unwrap(), 0);
    assert_eq!(platform.saw("details"), 3);
}

#[test]
fn prefetch_that_is_not_permitted_names_the_permission() {
    let platform = Platform::new();
    let client = participants(&platform, |_, _| Some(Ok(Response::new(403))), |_| None);
    let client = client.build().unwrap();
    let error = client
        .prefetch_participants(customers(5).iter().map(Update::target))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Forbidden);
    assert!(
        error
            .to_string()
            .contains("analytics:conversationDetail:view")
    );
}

#[test]
fn look_ahead_at_a_low_rate_reads_nobody_twice() {
    // With several workers time passes while one of them does not run.
    for (workers, chance) in [(1, 0), (8, 20)] {
        let platform = Platform::new();
        let client = participants(&platform, |_, _| None, |_| None);
        let client = client.rate_limit(RateLimit::per_minute(10));
        let client = client.build().unwrap();
        let batch = platform.batch(&client).workers(workers);
        let (report, _) = collected(batch, customers(400));
        assert!(report.is_complete(), "{report:?}");
        assert!(platform.seconds() > 2_000);
        assert_eq!(platform.saw("details"), 4);
        assert!(
            platform.requests() <= 404 + chance,
            "{}",
            platform.requests()
        );
    }
}

#[test]
fn prefetch_that_is_always_throttled_ends_at_the_deadline() {
    let platform = Platform::new();
    let throttled = || Some(Ok(Response::new(429).with_header("Retry-After", "7")));
    let client = participants(&platform, move |_, _| throttled(), |_| None);
    let client = client.build().unwrap();
    let result = client.prefetch_participants(customers(5).iter().map(Update::target));
    assert_eq!(result.unwrap_err().kind(), ErrorKind::RateLimited);
    assert!((280..=300).contains(&platform.seconds()));
}

#[test]
fn prefetch_of_what_is_refused_is_the_refusal_where_nothing_was_answered() {
    let platform = Platform::new();
    let client = participants(&platform, |_, _| Some(Ok(Response::new(400))), |_| None);
    let client = client.build().unwrap();
    let result = client.prefetch_participants(customers(5).iter().map(Update::target));
    assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn look_ahead_takes_nobody_else_for_the_customer() {
    // Analytics shows the external participant, and not yet the customer.
    let platform = Platform::new();
    let external = |url: &str| {
        let mut body = details_body(url, |_| false);
        for conversation in body["conversations"].as_array_mut().unwrap() {
            let id = conversation["conversationId"].as_str().unwrap();
            let id = match id < uuid(1_000).as_str() {
                true => "other".to_owned(),
                false => format!("p-{id}"),
            };
            conversation["participants"][1] = json!({ "participantId": id, "purpose": "external" });
        }
        body
    };
    let bulk = move |_: &Platform, url: &str| {
        Some(Ok(Response::new(200).with_body(external(url).to_string())))
    };
    let client = participants(&platform, bulk, |_| None).build().unwrap();
    let (report, outcomes) = collected(platform.batch(&client), customers(50));
    assert!(report.is_complete(), "{report:?}");
    assert!(outcomes.values().all(|o| o.requests == 2));
    assert_eq!(platform.saw("participants/other/"), 0);
    // Asked for by name, it is meant.
    let update = |n: u64| Update::participant(uuid(1_000 + n), "external").set("n", n);
    let (_, outcomes) = collected(platform.batch(&client), (0..50).map(update).collect());
    assert!(outcomes.values().all(|o| o.requests == 1));
}

#[test]
fn look_ahead_finds_participants_for_lines_behind_others_of_their_conversation() {
    let by_id = |n: u64| Update::participant(uuid(n), format!("p-{}", uuid(n))).set("n", 0);
    let customer = |n: u64| Update::participant(uuid(n), "customer").set("n", 1);
    let purpose = |n: u64| Update::participant(uuid(n), "purpose:customer").set("n", 2);
    let beside = (0..500).flat_map(|n| [by_id(n), customer(n)]).collect();
    let after = (0..500).map(by_id).chain((0..500).map(customer)).collect();
    let both = (0..500).flat_map(|n| [customer(n), purpose(n)]).collect();
    // One look-up more for each moment in which a busy machine stops the reading.
    for (updates, asked) in [(beside, 16), (after, 16), (both, 9)] {
        for workers in [1, 8] {
            let updates: &Vec<Update> = &updates;
            let platform = Platform::new();
            let client = participants(&platform, |_, _| None, |_| None);
            let client = client.build().unwrap();
            let batch = platform.batch(&client).workers(workers);
            let (report, _) = collected(batch, updates.clone());
            assert!(report.is_complete(), "{report:?}");
            let requests = platform.requests();
            assert!(requests <= 1_000 + asked, "{workers} workers: {requests}");
        }
    }
}

#[test]
fn look_ahead_finds_in_a_later_answer_what_an_earlier_one_lacked() {
    let platform = Platform::new();
    let asked = Mutex::new(HashSet::new());
    let client = participants(
        &platform,
        move |_, url| {
            let mut asked = asked.lock().unwrap();
            let fresh: HashSet<String> = url
                .split("?id=")
                .nth(1)?
                .split(',')
                .filter(|id| asked.insert(id.to_string()))
                .map(str::to_owned)
                .collect();
            let body = details_body(url, |id| fresh.contains(id));
            Some(Ok(Response::new(200).with_body(body.to_string())))
        },
        |_| None,
    );
    let client = client.build().unwrap();
    let updates = ["customer", "purpose:customer"]
        .into_iter()
        .flat_map(|who| (0..100).map(move |n| Update::participant(uuid(n), who).set("n", n)))
        .collect();
    let (report, outcomes) = collected(platform.batch(&client).workers(4), updates);
    assert!(report.is_complete(), "{report:?}");
    for (line, outcome) in outcomes {
        // The last of a few are not worth a look-up.
        assert!(
            outcome.requests == 1 + u32::from(line <= 100) || line > 100,
            "{line}"
        );
    }
    assert!(platform.requests() <= 320, "{}", platform.requests());
}

#[test]
fn look_ahead_whose_ids_are_all_wrong_is_off() {
    for workers in [1, 8] {
        let platform = Platform::new();
        let wrong = |url: &str| {
            let body = details_body(url, |_| false).to_string();
            body.replace("\"p-", "\"wrong-")
        };
        let client = participants(
            &platform,
            move |_, url| Some(Ok(Response::new(200).with_body(wrong(url)))),
            |_| None,
        );
        let client = client.build().unwrap();
        let batch = platform.batch(&client).workers(workers);
        let (report, outcomes) = collected(batch, customers(1_000));
        assert!(report.is_complete(), "{report:?}");
        assert!(outcomes.values().filter(|o| o.requests == 3).count() <= 10 + workers);
        assert!(platform.saw("details") <= 2);
        assert_eq!(platform.story(), ["participants are read"]);
    }
}

#[test]
fn failed_look_up_is_logged_without_its_ids() {
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let logged = lines.clone();
    crate::secrets::on_log(move |record| logged.lock().unwrap().push(record.args().to_string()));
    let platform = Platform::new();
    let asked = AtomicUsize::new(0);
    let client = participants(
        &platform,
        move |_, _| match asked.fetch_add(1, Ordering::SeqCst) {
            0 => Some(Ok(Response::new(429).with_header("Retry-After", "7"))),
            _ => Some(broken()),
        },
        |_| None,
    );
    let client = client.build().unwrap();
    let result = client.prefetch_participants(customers(5).iter().map(Update::target));
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Transport);
    let lines = lines.lock().unwrap();
    let told = |part: &str| lines.iter().any(|line| line.contains(part));
    assert!(
        told("participants of 5 conversations: rate limited"),
        "{lines:?}"
    );
    assert!(
        told("/conversations/details: the connection broke"),
        "{lines:?}"
    );
    assert!(!told(&uuid(1)), "{lines:?}");
}

#[test]
fn look_up_takes_a_larger_answer_than_other_requests() {
    let server = crate::server::Server::start(|req| {
        if req.path.contains("/oauth/") {
            return Resp::json(200, r#"{"access_token":"t","expires_in":86400}"#);
        }
        let mut body = details_body(req.path, |_| false);
        body["padding"] = json!("x".repeat(3 << 20));
        Resp::json(200, body.to_string())
    });
    let client = builder().base_url(server.url()).build().unwrap();
    let found = client.prefetch_participants(customers(100).iter().map(Update::target));
    assert_eq!(found.unwrap(), 100);
    // The token, and one request.
    assert_eq!(server.requests(), 2);
}

#[test]
fn look_ahead_in_an_outage_loses_no_line() {
    for workers in [1, 4] {
        for (from, to) in [(0, 30), (2, 60)] {
            let platform = Platform::new();
            let down = move |p: &Platform| (from..to).contains(&p.seconds());
            // Time passes with each request, and lines come behind others of their conversation.
            let client = platform.client(move |p, request| {
                p.clock.advance(Duration::from_millis(20));
                if down(p) {
                    return Some(refused());
                }
                let url = request.url();
                let body = match (request.method(), url.contains("details")) {
                    (Method::Get, true) => details_body(url, |id| last_digit(id) == 3),
                    (Method::Get, false) => {
                        let id = url.rsplit('/').next().unwrap_or_default();
                        json!({ "participants": [{ "id": format!("p-{id}"), "purpose": "customer" }] })
                    }
                    (Method::Patch, _) => json!({}),
                    _ => return None,
                };
                Some(Ok(Response::new(200).with_body(body.to_string())))
            });
            let updates = (0..900)
                .map(|n| Update::participant(uuid(n % 300), "customer").set("n", n))
                .collect();
            let (report, outcomes) = collected(platform.batch(&client).workers(workers), updates);
            assert!(report.is_complete(), "{workers} {from} {report:?}");
            assert_eq!(outcomes.len(), 900);
        }
    }
}

#[test]
fn look_ahead_reads_ids_that_are_no_uuids_by_their_own_line() {
    let platform = Platform::new();
    let client = participants(&platform, |_, _| None, |_| None);
    let client = client.build().unwrap();
    let updates = (0..200)
        .map(|n| match n % 2 {
            0 => Update::participant(uuid(n), "customer").set("n", n),
            _ => Update::participant(format!("c-{n}"), "customer").set("n", n),
        })
        .collect();
    let (report, outcomes) = collected(platform.batch(&client).workers(4), updates);
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(platform.saw("details"), 1);
    assert_eq!(platform.saw("id=c-"), 0);
    for (line, outcome) in outcomes {
        assert_eq!(outcome.requests, 1 + u32::from(line % 2 == 0), "{line}");
    }
}

#[test]
fn look_ahead_that_is_refused_reads_line_by_line_and_two_in_a_row_switch_it_off() {
    for status in [400, 413, 414] {
        for workers in [1, 8] {
            // The second chunk of each three is refused: never two in a row.
            let platform = Platform::new();
            let asked = AtomicUsize::new(0);
            let client = participants(
                &platform,
                move |_, _| {
                    let refused = asked.fetch_add(1, Ordering::SeqCst) % 3 == 1;
                    refused.then(|| Ok(Response::new(status)))
                },
                |_| None,
            );
            let client = client.build().unwrap();
            let batch = platform.batch(&client).workers(workers);
            let (report, _) = collected(batch, customers(900));
            assert!(report.is_complete(), "{report:?}");
            assert_eq!(platform.saw("details"), 9, "{workers} workers");
            assert_eq!(platform.requests(), 900 + 9 + 300);
            assert!(platform.story().is_empty());
            // All are refused.
            let platform = Platform::new();
            let refused = move || Some(Ok(Response::new(status)));
            let client = participants(&platform, move |_, _| refused(), |_| None);
            let client = client.build().unwrap();
            let batch = platform.batch(&client).workers(workers);
            let (report, _) = collected(batch, customers(900));
            assert!(report.is_complete(), "{report:?}");
            assert_eq!(platform.saw("details"), 2, "{workers} workers");
            assert_eq!(platform.story(), ["participants are read"]);
        }
    }
}

#[test]
fn look_ahead_that_fails_for_a_passing_reason_is_tried_again_as_any_read() {
    let failures: [fn() -> Answer; 3] = [
        || Ok(Response::new(503)),
        broken,
        || Ok(Response::new(200).with_broken_body("cut")),
    ];
    for failure in failures {
        let platform = Platform::new();
        let asked = AtomicUsize::new(0);
        let client = participants(
            &platform,
            move |_, _| (asked.fetch_add(1, Ordering::SeqCst) % 4 != 3).then(failure),
            |_| None,
        );
        let client = client.build().unwrap();
        let (report, outcomes) = collected(platform.batch(&client).workers(4), customers(500));
        assert!(report.is_complete(), "{report:?}");
        // Each of the five is answered at the fourth attempt.
        assert_eq!(platform.saw("details"), 20);
        assert!(outcomes.values().all(|outcome| outcome.requests == 1));
    }
}

#[test]
fn look_ahead_that_hangs_is_switched_off_after_two() {
    let platform = Platform::new();
    let client = participants(
        &platform,
        |platform, _| {
            platform.clock.advance(Duration::from_secs(20));
            Some(Err(TransportError::new(
                Error::new(ErrorKind::Timeout, "no answer in time"),
                Sent::Maybe,
            )))
        },
        |_| None,
    );
    let client = client.build().unwrap();
    let (report, _) = collected(platform.batch(&client).workers(8), customers(300));
    assert!(report.is_complete(), "{report:?}");
    assert_eq!((platform.saw("details"), platform.seconds()), (2, 40));
    assert_eq!(platform.story(), ["participants are read"]);
}

#[test]
fn look_ahead_does_not_wait_for_input_that_does_not_come() {
    let platform = Platform::new();
    let client = participants(&platform, |_, _| None, |_| None);
    let client = client.build().unwrap();
    let seen = Cell::new(0);
    let mut next = 0;
    let updates = std::iter::from_fn(|| match next {
        10 => None,
        5 if seen.get() < 5 => Some(None),
        n => {
            next += 1;
            Some(Some(Update::participant(uuid(n), "customer").set("n", n)))
        }
    });
    let report = platform.batch(&client).run(updates, |_| {
        seen.set(seen.get() + 1);
        ControlFlow::Continue(())
    });
    assert!(report.is_complete());
    assert_eq!(platform.requests(), 12);
}

#[test]
fn refused_conversations_that_ended_are_found_by_every_line() {
    // By purpose, by id, and behind another line of the conversation.
    let platform = Platform::new();
    let single = |id: &str| {
        Some(json!({ "endTime": "2026-01-01T00:00:00Z",
            "participants": [{ "id": format!("p-{id}"), "purpose": "customer" }]}))
    };
    let client = participants(&platform, |_, _| None, single);
    let client = client.ended_conversations(EndedPolicy::Refuse);
    let client = client.build().unwrap();
    let updates = (0..100)
        .flat_map(|n| [uuid(n), uuid(n)])
        .map(|id| Update::participant(id, "customer").set("n", 1))
        .collect();
    let (report, _) = collected(platform.batch(&client).workers(4), updates);
    assert_eq!((report.failed, platform.saw("PATCH")), (200, 0));
    assert_eq!(platform.saw("details"), 0);
}
