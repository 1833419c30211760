# The numbers are those of deploy/kubernetes/base: api.yaml and scaling.yaml.
resource "aws_appautoscaling_target" "broker" {
  for_each = local.scaled

  service_namespace  = "ecs"
  scalable_dimension = "ecs:service:DesiredCount"
  resource_id        = "service/${var.cluster_name}/${aws_ecs_service.scaled[each.key].name}"
  min_capacity       = each.value.min
  max_capacity       = each.value.max
}

resource "aws_appautoscaling_policy" "api" {
  name               = "sandbox-broker-api-processor-time"
  policy_type        = "TargetTrackingScaling"
  service_namespace  = aws_appautoscaling_target.broker["api"].service_namespace
  scalable_dimension = aws_appautoscaling_target.broker["api"].scalable_dimension
  resource_id        = aws_appautoscaling_target.broker["api"].resource_id

  target_tracking_scaling_policy_configuration {
    target_value      = 60
    scale_in_cooldown = 300

    predefined_metric_specification {
      predefined_metric_type = "ECSServiceAverageCPUUtilization"
    }
  }
}

# Beat logs once a minute how many messages wait in each queue. The log group makes a metric of each number.
resource "aws_cloudwatch_log_metric_filter" "queue" {
  for_each = local.queues

  name           = "sandbox-broker-queue-${each.value}"
  log_group_name = aws_cloudwatch_log_group.broker.name
  pattern        = "{ $.action = \"queues\" }"

  metric_transformation {
    namespace = "SandboxBroker"
    name      = "QueueMessages-${each.value}"
    value     = "$.messages.${each.value}"
    unit      = "Count"
  }
}

locals {
  queues = { for worker in local.workers : worker => trimprefix(worker, "worker-") }

  # More messages than this for each of the fewest tasks ask for all of them.
  messages_per_task = {
    worker-jobs      = 10
    worker-deletions = 100
    worker-webhooks  = 1
  }

  # Two looks above the threshold start tasks, so that a burst that is soon taken does not. Five at or below it stop them.
  queue_steps = merge([
    for worker in local.workers : {
      "${worker}-out" = { worker = worker, tasks = var.worker_tasks[worker].max, out = true, minutes = 2 }
      "${worker}-in"  = { worker = worker, tasks = var.worker_tasks[worker].min, out = false, minutes = 5 }
    }
  ]...)
}

resource "aws_appautoscaling_policy" "queue" {
  for_each = local.queue_steps

  name               = "sandbox-broker-${each.key}"
  policy_type        = "StepScaling"
  service_namespace  = aws_appautoscaling_target.broker[each.value.worker].service_namespace
  scalable_dimension = aws_appautoscaling_target.broker[each.value.worker].scalable_dimension
  resource_id        = aws_appautoscaling_target.broker[each.value.worker].resource_id

  step_scaling_policy_configuration {
    adjustment_type         = "ExactCapacity"
    metric_aggregation_type = "Maximum"
    cooldown                = 60

    step_adjustment {
      metric_interval_lower_bound = each.value.out ? "0" : null
      metric_interval_upper_bound = each.value.out ? null : "0"
      scaling_adjustment          = each.value.tasks
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "queue" {
  for_each = local.queue_steps

  alarm_name          = "sandbox-broker-${each.key}"
  alarm_description   = "Scales ${each.value.worker} by the length of its queue. It is no fault."
  alarm_actions       = [aws_appautoscaling_policy.queue[each.key].arn]
  namespace           = aws_cloudwatch_log_metric_filter.queue[each.value.worker].metric_transformation[0].namespace
  metric_name         = aws_cloudwatch_log_metric_filter.queue[each.value.worker].metric_transformation[0].name
  statistic           = "Maximum"
  period              = 60
  evaluation_periods  = each.value.minutes
  threshold           = local.messages_per_task[each.value.worker] * var.worker_tasks[each.value.worker].min
  comparison_operator = each.value.out ? "GreaterThanThreshold" : "LessThanOrEqualToThreshold"
  # If the length is unknown, the number of workers stays.
  treat_missing_data = "ignore"
}
