// What CronJob makes of schedules: robfig/cron, as the controller calls it. Writes the vectors that test_timetable.py compares with.
//
//	go run . > vectors.jsonl
package main

import (
	"encoding/json"
	"os"
	"time"
	_ "time/tzdata"

	"github.com/robfig/cron/v3"
)

type vector struct {
	Schedule string   `json:"schedule"`
	TimeZone string   `json:"timeZone"`
	After    string   `json:"after"`
	Slots    []string `json:"slots"`
}

var schedules = []string{
	"59 1 * * *", "0 2 * * *", "1 2 * * *", "30 2 * * *", "0 3 * * *", "0 0 * * *", "30 0 * * *", "0 1 * * *", "45 1 * * *",
	"*/20 * * * *", "15 */6 * * *", "0 1-3 * * *", "@hourly", "@daily", "@weekly", "@monthly", "@yearly", "30 1 1 * *",
	"0 12 13 * FRI", "0 0 */10 * MON", "0 0 1 * */3", "0 0 ? * 2/2", "5 4 1,15 JAN-mar *", "0 2 29 2 *", "0 2 * * 0", "0 9 * * 1-5",
	"7/25 3/9 * * *", "0 0 1-31/15 * ?", "0 0 1,* * 3", "0 0 * * 5/1",
}

// Around what their clocks do in 2020: an hour in spring and autumn, in the southern hemisphere, half an hour, never.
var starts = map[string][]string{
	"America/Los_Angeles": {"2020-03-07T20:00:00Z", "2020-10-31T20:00:00Z"},
	"Europe/Berlin":       {"2020-03-28T12:00:00Z", "2020-10-24T12:00:00Z"},
	"Australia/Sydney":    {"2020-04-04T05:00:00Z", "2020-10-03T05:00:00Z"},
	"Asia/Kolkata":        {"2020-02-28T00:00:30Z"},
	"Etc/UTC":             {"2020-12-31T23:59:00Z"},
}

func main() {
	vectors := []vector{}
	for _, zone := range []string{"America/Los_Angeles", "Europe/Berlin", "Australia/Sydney", "Asia/Kolkata", "Etc/UTC"} {
		location, err := time.LoadLocation(zone)
		check(err)
		for _, text := range schedules {
			schedule, err := cron.ParseStandard(text)
			check(err)
			for _, start := range starts[zone] {
				moment, err := time.Parse(time.RFC3339, start)
				check(err)
				found := vector{Schedule: text, TimeZone: zone, After: start}
				for range 5 {
					moment = schedule.Next(moment.In(location))
					found.Slots = append(found.Slots, moment.UTC().Format(time.RFC3339))
				}
				vectors = append(vectors, found)
			}
		}
	}
	encoder := json.NewEncoder(os.Stdout)
	for _, one := range vectors {
		check(encoder.Encode(one))
	}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
