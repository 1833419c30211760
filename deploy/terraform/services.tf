# The task definitions of deploy/ecs, with the values of this module in place of their examples.
locals {
  definitions = {
    for name in ["api", "console", "worker-jobs", "worker-deletions", "worker-webhooks", "beat"] :
    name => jsondecode(file("${path.module}/../ecs/${name}.json"))
    if name != "console" || var.console_target_group_arn != null
  }

  containers = { for name, definition in local.definitions : name => definition.containerDefinitions[0] }
  ports      = { for name, container in local.containers : name => container.portMappings[0].containerPort }

  # In place of those values of the files that are examples.
  values = {
    AWS_REGION     = var.region
    DDB_TABLE_NAME = aws_dynamodb_table.broker.name
    RECYCLE_POLICY = var.recycle_policy
    CSP_BASE_URL   = var.provider_url
    BROKER_API_URL = var.api_url
  }

  environments = {
    for name, container in local.containers : name => merge(
      { for each in container.environment : each.name => lookup(local.values, each.name, each.value) },
      lookup(var.settings, name, {}),
    )
  }

  # Who gets a secret that not every broker has, if the variable secrets says where it is.
  workers = ["worker-jobs", "worker-deletions", "worker-webhooks"]
  more_secrets = {
    OIDC_CLIENT_SECRET         = ["console"]
    CSP_SERVICES_EMAIL         = local.workers
    CSP_SERVICES_PASSWORD      = local.workers
    OTEL_EXPORTER_OTLP_HEADERS = keys(local.definitions)
  }

  secrets = {
    for name, container in local.containers : name => concat(
      [for secret in container.secrets : secret.name],
      [for secret, users in local.more_secrets : secret if contains(users, name) && var.secrets[secret] != null],
    )
  }

  # How many run; as deploy/ecs/README.md says.
  fixed  = { for name, tasks in { console = 1, beat = 2 } : name => tasks if contains(keys(local.definitions), name) }
  scaled = merge({ api = var.api_tasks }, var.worker_tasks)

  target_groups = { for name, arn in {
    api     = var.api_target_group_arn
    console = var.console_target_group_arn
  } : name => arn if arn != null }
}

resource "aws_cloudwatch_log_group" "broker" {
  name              = local.containers["api"].logConfiguration.options["awslogs-group"]
  retention_in_days = var.log_retention_days
}

resource "aws_ecs_task_definition" "broker" {
  for_each = local.definitions

  family                   = each.value.family
  requires_compatibilities = each.value.requiresCompatibilities
  network_mode             = each.value.networkMode
  cpu                      = each.value.cpu
  memory                   = each.value.memory
  execution_role_arn       = aws_iam_role.execution.arn
  # Only those that use the table have a role. Its name ends with the key of the role here.
  task_role_arn = try(aws_iam_role.task[regex("[a-z]+$", each.value.taskRoleArn)].arn, null)

  runtime_platform {
    operating_system_family = each.value.runtimePlatform.operatingSystemFamily
    cpu_architecture        = each.value.runtimePlatform.cpuArchitecture
  }

  dynamic "volume" {
    for_each = each.value.volumes

    content {
      name = volume.value.name
    }
  }

  container_definitions = jsonencode([
    merge(local.containers[each.key], {
      image       = var.image
      environment = [for name, value in local.environments[each.key] : { name = name, value = value }]
      secrets     = [for name in local.secrets[each.key] : { name = name, valueFrom = var.secrets[name] }]
      logConfiguration = merge(local.containers[each.key].logConfiguration, {
        options = merge(local.containers[each.key].logConfiguration.options, {
          awslogs-group  = aws_cloudwatch_log_group.broker.name
          awslogs-region = var.region
        })
      })
    })
  ])

  lifecycle {
    precondition {
      condition     = alltrue([for name in local.secrets[each.key] : var.secrets[name] != null])
      error_message = "The console needs CONSOLE_SECRET_KEY in the variable secrets."
    }
  }
}

resource "aws_ecs_service" "fixed" {
  for_each = local.fixed

  name                               = "sandbox-broker-${each.key}"
  cluster                            = var.cluster_name
  launch_type                        = "FARGATE"
  task_definition                    = aws_ecs_task_definition.broker[each.key].arn
  desired_count                      = each.value
  deployment_minimum_healthy_percent = 100
  deployment_maximum_percent         = 200

  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }

  network_configuration {
    subnets          = var.subnet_ids
    security_groups  = var.security_group_ids
    assign_public_ip = false
  }

  dynamic "load_balancer" {
    for_each = each.key == "console" ? [local.target_groups["console"]] : []

    content {
      target_group_arn = load_balancer.value
      container_name   = each.key
      container_port   = local.ports[each.key]
    }
  }

  # Without its rights a task cannot start.
  depends_on = [aws_iam_role_policy.execution, aws_iam_role_policy_attachment.task]
}

resource "aws_ecs_service" "scaled" {
  for_each = local.scaled

  name                               = "sandbox-broker-${each.key}"
  cluster                            = var.cluster_name
  launch_type                        = "FARGATE"
  task_definition                    = aws_ecs_task_definition.broker[each.key].arn
  desired_count                      = each.value.min
  deployment_minimum_healthy_percent = 100
  deployment_maximum_percent         = 200

  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }

  network_configuration {
    subnets          = var.subnet_ids
    security_groups  = var.security_group_ids
    assign_public_ip = false
  }

  dynamic "load_balancer" {
    for_each = each.key == "api" ? [local.target_groups["api"]] : []

    content {
      target_group_arn = load_balancer.value
      container_name   = each.key
      container_port   = local.ports[each.key]
    }
  }

  lifecycle {
    # The scaling changes it.
    ignore_changes = [desired_count]
  }

  # Without its rights a task cannot start.
  depends_on = [aws_iam_role_policy.execution, aws_iam_role_policy_attachment.task]
}
