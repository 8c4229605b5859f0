-- A database as the first release (8357bee) left it: what it created, and two runs, one of which never ended.
BEGIN TRANSACTION;
CREATE TABLE agent (
	agent_id VARCHAR(36) NOT NULL, 
	enrolled_ns BIGINT NOT NULL, 
	host TEXT, 
	seen_ns BIGINT, 
	PRIMARY KEY (agent_id)
);
INSERT INTO "agent" VALUES('55015147-853b-4a25-a6df-d1aae9df3090',1795401989324859551,'app-1',1795401989345009164);
CREATE TABLE join_token (
	digest VARCHAR(64) NOT NULL, 
	expires_ns BIGINT NOT NULL, 
	used_ns BIGINT, 
	agent_id VARCHAR(36), 
	PRIMARY KEY (digest)
);
INSERT INTO "join_token" VALUES('f585993fd1d87e16cad17b8ace20ada80dbdb266b9adef6d195b12675bfada24',1795402889308987989,1795401989324859551,'55015147-853b-4a25-a6df-d1aae9df3090');
INSERT INTO "join_token" VALUES('8c39215131a489ad913ded1bff28c815993c4cd7d324ba6c2d41ac2a60578219',1795402889368914158,NULL,NULL);
CREATE TABLE owner_epoch (
	epoch INTEGER NOT NULL, 
	taken_ns BIGINT NOT NULL, 
	PRIMARY KEY (epoch)
);
INSERT INTO "owner_epoch" VALUES(1,1795401989386771092);
INSERT INTO "owner_epoch" VALUES(2,1795401989400911512);
INSERT INTO "owner_epoch" VALUES(3,1795401989413828147);
CREATE TABLE run (
	number INTEGER NOT NULL, 
	name VARCHAR(63) NOT NULL, 
	operator TEXT NOT NULL, 
	plan_digest VARCHAR(64) NOT NULL, 
	started_ns BIGINT NOT NULL, 
	ended_ns BIGINT, 
	verdict VARCHAR(16), 
	exit_code INTEGER, 
	headline TEXT, 
	document BLOB, 
	PRIMARY KEY (number)
);
INSERT INTO "run" VALUES(1,'lose-an-app-server','mary','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd',1790000000000000000,1795401989464910225,'held',0,'it held',X'789CAB562A4ECE48CD4D54B2524A2ACA2FCFCB2F2DD12B2ACDD33754D2512A4B2D4AC94C2E014A65A4E6A428D5020058D60F0B');
INSERT INTO "run" VALUES(2,'busy-cpu','joe','eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',1790000100000000000,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE run_event (
	run_number INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	at_ns BIGINT NOT NULL, 
	kind VARCHAR(32) NOT NULL, 
	subject TEXT NOT NULL, 
	host TEXT NOT NULL, 
	message TEXT NOT NULL, 
	PRIMARY KEY (run_number, position), 
	FOREIGN KEY(run_number) REFERENCES run (number)
);
INSERT INTO "run_event" VALUES(1,0,1790000000000000001,'run_started','run','','it holds');
INSERT INTO "run_event" VALUES(1,1,1790000000000000002,'fault_ordered','kill','app-1','');
INSERT INTO "run_event" VALUES(2,0,1790000100000000001,'run_started','run','','');
COMMIT;
